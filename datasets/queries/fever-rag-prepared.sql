-- As fever-rag, over passages that were retrieved before: they stand in columns, best first, as in Optimizing LLM Queries in Relational Data
-- Analytics Workloads (arXiv 2403.05821). They are given as a set, so that their order may be chosen.
SELECT t.claim,
       ai_complete('Judge the claim by the passages.', t.claim, passages => [t.evidence1, t.evidence2, t.evidence3, t.evidence4],
                   return_type => '{"type": "string", "enum": ["SUPPORTS", "REFUTES", "NOT ENOUGH INFO"]}') AS verdict
FROM fever_rag AS t;
