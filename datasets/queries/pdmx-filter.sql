-- Which pieces of music name a specific person, judged from all their metadata: the filter (T1) over pdmx of Optimizing LLM Queries in
-- Relational Data Analytics Workloads (arXiv 2403.05821).
SELECT t.title
FROM pdmx AS t
WHERE ai_filter('Does the description of this piece of music name a specific person?', t.*);
