-- Five positive reviews of one film: Q2 of SemBench's Movie scenario (arXiv 2511.01716).
SELECT text FROM reviews WHERE id = $film AND ai_filter('clearly positive', text) LIMIT 5;
