-- As squad-rag, over passages that were retrieved before: they stand in columns, best first, as in Optimizing LLM Queries in Relational Data
-- Analytics Workloads (arXiv 2403.05821). They are given as a set, so that their order may be chosen.
SELECT t.question,
       ai_complete('Answer the question from the passages. Write the answer only.', t.question,
                   passages => [t.context1, t.context2, t.context3, t.context4], max_tokens => 32) AS answer
FROM squad_rag AS t;
