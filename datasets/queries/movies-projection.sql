-- What the reviewer liked: the projection (T2) over movies of Optimizing LLM Queries in Relational Data Analytics Workloads (arXiv
-- 2403.05821).
SELECT ai_complete('Name the good qualities of the film that led to its rating.', t.*, max_tokens => 64) AS qualities
FROM movies AS t;
