-- Answers from four retrieved passages, beside an answer that a reader gave.
SELECT t.question AS key,
       ai_complete('Answer the question from the passages. Write the answer only.', t.*, max_tokens => 32) AS answer, c.answer AS reference
FROM squad_rag AS t
JOIN (SELECT question, min(answer) AS answer FROM squad GROUP BY question) AS c ON c.question = t.question;
