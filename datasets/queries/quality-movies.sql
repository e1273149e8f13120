-- Whether a critic likes a film, judged from the review and what is known of the film, beside the critic's own verdict.
SELECT t.rottentomatoeslink || ': ' || t.reviewcontent AS key,
       CASE ai_filter('Does the critic like the film?', t.reviewcontent, t.movietitle, t.movieinfo, t.genres, t.productioncompany, t.topcritic)
            WHEN true THEN 'Fresh' WHEN false THEN 'Rotten' END AS answer,
       t.reviewtype AS label
FROM movies AS t;
