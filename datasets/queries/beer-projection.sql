-- An overview of a rating: the projection (T2) over beer of Optimizing LLM Queries in Relational Data Analytics Workloads (arXiv 2403.05821).
SELECT ai_complete('Describe the beer in at most 20 words.', t.*, max_tokens => 60) AS overview
FROM beer AS t;
