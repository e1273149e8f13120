-- Which films are suitable for children, judged from all fields of a review: the filter (T1) over movies of Optimizing LLM Queries in
-- Relational Data Analytics Workloads (arXiv 2403.05821).
SELECT t.reviewcontent
FROM movies AS t
WHERE ai_filter('Is the film suitable for children?', t.*);
