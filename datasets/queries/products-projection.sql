-- Whether a review and the maker's description agree: the projection (T2) over products of Optimizing LLM Queries in Relational Data Analytics
-- Workloads (arXiv 2403.05821).
SELECT ai_complete('Summarise the review in one sentence. Then say whether the description of the product agrees with it.', t.*, max_tokens => 160) AS summary
FROM products AS t;
