-- A score for each review of one film: Q9 of SemBench's Movie scenario (arXiv 2511.01716).
SELECT n, ai_score('How positive?', text, min => 1, max => 5) FROM reviews WHERE id = $film ORDER BY n;
