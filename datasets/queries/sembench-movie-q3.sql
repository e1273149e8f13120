-- How many reviews of one film are positive: Q3 of SemBench's Movie scenario (arXiv 2511.01716).
SELECT count(*) FROM reviews WHERE id = $film AND ai_filter('clearly positive', text);
