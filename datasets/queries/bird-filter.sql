-- Which posts are about statistics, judged from the post and one comment on it: the filter (T1) over bird of Optimizing LLM Queries in
-- Relational Data Analytics Workloads (arXiv 2403.05821).
SELECT t."PostId"
FROM bird AS t
WHERE ai_filter('Is the post about statistics?', t.*);
