-- As fever-rag, over passages that were retrieved before: they stand in columns, best first, as in Optimizing LLM Queries in Relational Data
-- Analytics Workloads (arXiv 2403.05821).
SELECT t.claim, ai_complete('Judge the claim by the passages.', t.*, return_type => '{"type": "string", "enum": ["SUPPORTS", "REFUTES", "NOT ENOUGH INFO"]}') AS verdict
FROM fever_rag AS t;
