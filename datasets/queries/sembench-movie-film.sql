-- The film that queries of SemBench's Movie scenario (arXiv 2511.01716) are about: the one with the most reviews.
SELECT id FROM reviews GROUP BY id ORDER BY count(*) DESC, id LIMIT 1;
