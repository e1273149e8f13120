-- The table of SemBench's Movie scenario (arXiv 2511.01716), out of movies_15k: 2,000 reviews with a number and the id of their film.
CREATE TABLE reviews AS
SELECT row_number() OVER () AS n, movieid AS id, reviewcontent AS text FROM (SELECT * FROM movies_15k LIMIT 2000);
