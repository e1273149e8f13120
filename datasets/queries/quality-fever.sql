-- Whether claims hold, judged from four retrieved passages, beside the verdict of those who checked them.
SELECT t.claim AS key,
       ai_complete('Judge the claim by the passages.', t.*, return_type => '{"type": "string", "enum": ["SUPPORTS", "REFUTES", "NOT ENOUGH INFO"]}') AS answer, c.label
FROM fever_rag AS t
JOIN (SELECT claim, min(label) AS label FROM fever_claims GROUP BY claim) AS c ON c.claim = t.claim;
