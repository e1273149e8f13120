-- Positive and other reviews of one film, counted: Q8 of SemBench's Movie scenario (arXiv 2511.01716).
SELECT CASE WHEN ai_filter('clearly positive', text) THEN 'positive' ELSE 'negative' END AS kind, count(*)
FROM reviews WHERE id = $film
GROUP BY kind ORDER BY kind;
