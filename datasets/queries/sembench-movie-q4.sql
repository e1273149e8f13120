-- The share of positive reviews of one film: Q4 of SemBench's Movie scenario (arXiv 2511.01716).
SELECT sum(CASE WHEN ai_filter('clearly positive', text) THEN 1 ELSE 0 END) * 1.0 / count(*) FROM reviews WHERE id = $film;
