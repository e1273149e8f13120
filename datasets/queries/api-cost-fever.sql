-- Fact checking with every field five times, as Optimizing LLM Queries in Relational Data Analytics Workloads (arXiv 2403.05821) sent it to two
-- providers, so that prompts are as long as a provider's cache wants them.
SELECT ai_complete('Judge the claim by the passages.', t.*, return_type => '{"type": "string", "enum": ["SUPPORTS", "REFUTES", "NOT ENOUGH INFO"]}') AS verdict
FROM (SELECT evidence1, evidence2, evidence3, evidence4, claim,
             evidence1 AS evidence1_2, evidence2 AS evidence2_2, evidence3 AS evidence3_2, evidence4 AS evidence4_2, claim AS claim_2,
             evidence1 AS evidence1_3, evidence2 AS evidence2_3, evidence3 AS evidence3_3, evidence4 AS evidence4_3, claim AS claim_3,
             evidence1 AS evidence1_4, evidence2 AS evidence2_4, evidence3 AS evidence3_4, evidence4 AS evidence4_4, claim AS claim_4,
             evidence1 AS evidence1_5, evidence2 AS evidence2_5, evidence3 AS evidence3_5, evidence4 AS evidence4_5, claim AS claim_5
      FROM fever_rag) AS t;
