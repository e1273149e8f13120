-- Which reviews are negative, neutral ones being told apart: the filter (T1) over products of Optimizing LLM Queries in Relational Data
-- Analytics Workloads (arXiv 2403.05821).
SELECT t.product_title
FROM products AS t
WHERE ai_classify(t.*, [{label: 'POSITIVE', description: 'the review praises the product'},
                        {label: 'NEGATIVE', description: 'the review complains about the product'},
                        {label: 'NEUTRAL', description: 'neither'}]) = 'NEGATIVE';
