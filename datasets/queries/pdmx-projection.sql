-- An overview of a piece of music: the projection (T2) over pdmx of Optimizing LLM Queries in Relational Data Analytics Workloads (arXiv
-- 2403.05821).
SELECT ai_complete('Describe the type of music and what its scores tell, in at most 50 words.', t.*, max_tokens => 120) AS overview
FROM pdmx AS t;
