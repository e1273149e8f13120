-- Two calls: negative reviews are found by the text alone, then the question of products-projection is asked about them: the multi-LLM query
-- (T3) over products of Optimizing LLM Queries in Relational Data Analytics Workloads (arXiv 2403.05821).
SELECT ai_complete('Summarise the review in one sentence. Then say whether the description of the product agrees with it.', t.*, max_tokens => 160) AS summary
FROM products AS t
WHERE ai_sentiment(t.text) = 'negative';
