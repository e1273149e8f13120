-- The average of a score from 1 to 5 that the model gives each review: the aggregation (T4) over products of Optimizing LLM Queries in
-- Relational Data Analytics Workloads (arXiv 2403.05821).
SELECT avg(ai_score('How much does the reviewer like the product? 1 is not at all, 5 is very much.', t.*, min => 1, max => 5, integer => true)) AS score
FROM products AS t;
