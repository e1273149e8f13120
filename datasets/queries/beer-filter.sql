-- Which beers come from Europe, judged from all fields of a rating: the filter (T1) over beer of Optimizing LLM Queries in Relational Data
-- Analytics Workloads (arXiv 2403.05821).
SELECT t."beer/name"
FROM beer AS t
WHERE ai_filter('Does the beer come from Europe?', t.*);
