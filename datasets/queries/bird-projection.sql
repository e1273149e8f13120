-- How a comment relates to its post: the projection (T2) over bird of Optimizing LLM Queries in Relational Data Analytics Workloads (arXiv
-- 2403.05821).
SELECT ai_complete('Say in one or two sentences how the comment (Text) relates to the post (Body).', t.*, max_tokens => 80) AS relation
FROM bird AS t;
