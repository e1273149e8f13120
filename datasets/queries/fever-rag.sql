-- Whether claims hold, by retrieved passages: the fact checking (T5) over FEVER of Optimizing LLM Queries in Relational Data Analytics
-- Workloads (arXiv 2403.05821). Claims and evidence are embedded, and each claim gets the four pieces of evidence nearest to it, as a set.
-- Every claim meets all evidence, so try it on few claims first.
WITH claims AS (SELECT id, claim, ai_embed(claim) AS vector FROM fever_claims),
     passages AS (SELECT evidence, ai_embed(evidence) AS vector FROM (SELECT DISTINCT evidence FROM fever_evidence_pairs)),
     ranked AS (SELECT c.id, c.claim, p.evidence,
                       row_number() OVER (PARTITION BY c.id ORDER BY ai_similarity(c.vector, p.vector) DESC, p.evidence) AS rank
                FROM claims AS c CROSS JOIN passages AS p),
     retrieved AS (SELECT id, claim, array_agg(evidence ORDER BY rank) AS evidence FROM ranked WHERE rank <= 4 GROUP BY id, claim)
SELECT id, ai_complete('Judge the claim by the passages.', claim, passages => evidence, return_type => '{"type": "string", "enum": ["SUPPORTS", "REFUTES", "NOT ENOUGH INFO"]}') AS verdict
FROM retrieved;
