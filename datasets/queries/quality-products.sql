-- Whether a customer is content, judged from the review and the product's description, beside the stars that the customer gave; reviews of
-- three stars are left out.
SELECT t.product_id || ': ' || t.review_id AS key,
       ai_filter('Is the customer content with the product?', t.review_title, t.text, t.product_title, t.category, t.description) AS answer,
       t.rating > 3 AS label
FROM products AS t
WHERE t.rating <> 3;
