-- Answers from retrieved passages: the question answering (T5) over SQuAD of Optimizing LLM Queries in Relational Data Analytics Workloads
-- (arXiv 2403.05821). Questions and passages are embedded, and each question gets the four passages nearest to it, as a set. Every question
-- meets every passage, so try it on few questions first.
WITH questions AS (SELECT id, question, ai_embed(question) AS vector FROM squad),
     passages AS (SELECT context, ai_embed(context) AS vector FROM (SELECT DISTINCT context FROM squad)),
     ranked AS (SELECT q.id, q.question, p.context,
                       row_number() OVER (PARTITION BY q.id ORDER BY ai_similarity(q.vector, p.vector) DESC, p.context) AS rank
                FROM questions AS q CROSS JOIN passages AS p),
     retrieved AS (SELECT id, question, array_agg(context ORDER BY rank) AS contexts FROM ranked WHERE rank <= 4 GROUP BY id, question)
SELECT id, ai_complete('Answer the question from the passages. Write the answer only.', question, passages => contexts, max_tokens => 32) AS answer
FROM retrieved;
