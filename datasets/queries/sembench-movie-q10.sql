-- Films by the average score of their reviews: Q10 of SemBench's Movie scenario (arXiv 2511.01716).
SELECT id, avg(ai_score('How positive?', text, min => 1, max => 5)) AS score FROM reviews GROUP BY id ORDER BY score DESC, id;
