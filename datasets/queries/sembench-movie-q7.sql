-- How many pairs of reviews of one film feel the opposite: Q7 of SemBench's Movie scenario (arXiv 2511.01716).
SELECT count(*)
FROM reviews AS a JOIN reviews AS b ON a.id = b.id AND a.n < b.n AND a.id = $film AND ai_filter('opposite sentiment', a.text, b.text);
