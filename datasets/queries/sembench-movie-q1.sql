-- Five positive reviews: Q1 of SemBench's Movie scenario (arXiv 2511.01716).
SELECT text FROM reviews WHERE ai_filter('clearly positive', text) LIMIT 5;
