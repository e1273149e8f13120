-- Ten pairs of reviews of one film that feel the same: Q5 of SemBench's Movie scenario (arXiv 2511.01716).
SELECT a.text, b.text
FROM reviews AS a JOIN reviews AS b ON a.id = b.id AND a.n < b.n AND ai_filter('same sentiment', a.text, b.text)
LIMIT 10;
