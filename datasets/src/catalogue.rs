//! The catalogue: what is known of each benchmark table, where it comes from and under which licence.
//!
//! The tables are those of "Optimizing LLM Queries in Relational Data Analytics Workloads" (arXiv 2403.05821), or public tables in their
//! shape. None is part of the project: [`local`] finds copies on this machine, `fetch` brings those that a
//! public address has as one file, and [`generate`](crate::generate) makes tables that repeat themselves as they do.

use std::path::PathBuf;

use crate::local;

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Strings.
    Text,
    /// 64-bit integers.
    Integer,
    /// Double precision numbers.
    Number,
}

/// A column of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name, as in the file.
    pub name: &'static str,
    /// What it holds.
    pub kind: Kind,
}

/// The table of the paper that a table is, or stands for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PaperTable {
    /// What the paper calls it.
    pub title: &'static str,
    /// Its rows.
    pub rows: usize,
    /// The fields that its queries read.
    pub fields: usize,
    /// Tokens of a prompt on average, with the tokenizer of Llama 3.
    pub prompt_tokens: usize,
    /// Whether the local copy is this very table, and not one in its shape.
    pub is_same: bool,
}

/// A file at a public address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Download {
    /// Where it is.
    pub url: &'static str,
    /// The name that it gets, under which [`local::find`] finds the table.
    pub file: &'static str,
    /// Git's id of its content: SHA-1 over a header with the length, and the bytes. In hexadecimal.
    pub git_blob: &'static str,
}

/// A table of the catalogue.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dataset {
    /// The name under which queries know it.
    pub name: &'static str,
    /// What it holds, in a line.
    pub about: &'static str,
    /// Its columns, as in the local copy.
    pub columns: &'static [Column],
    /// Rows of the local copy.
    pub rows: usize,
    /// Name of the local copy, without its ending.
    pub file: &'static str,
    /// SHA-256 of the local copy as Parquet, in hexadecimal.
    pub sha256: &'static str,
    /// Where the data of the local copy was published.
    pub sources: &'static [&'static str],
    /// The licence, as the source states it.
    pub licence: &'static str,
    /// The table of the paper, if it is or stands for one.
    pub paper: Option<PaperTable>,
    /// The paper's table as its authors or others publish it, where that is one file.
    pub download: Option<Download>,
}

impl Dataset {
    /// Returns the file of the table in the first of `folders` that has one, by the name of the local copy or of the table.
    pub fn local(&self, folders: &[PathBuf]) -> Option<PathBuf> {
        [self.file, self.name].into_iter().find_map(|name| local::find(name, folders))
    }
}

/// Returns every table.
pub fn datasets() -> &'static [Dataset] {
    &DATASETS
}

/// Returns the table of this name.
pub fn dataset(name: &str) -> Option<&'static Dataset> {
    DATASETS.iter().find(|dataset| dataset.name == name)
}

pub(crate) const fn text(name: &'static str) -> Column {
    Column { name, kind: Kind::Text }
}

pub(crate) const fn integer(name: &'static str) -> Column {
    Column { name, kind: Kind::Integer }
}

pub(crate) const fn number(name: &'static str) -> Column {
    Column { name, kind: Kind::Number }
}

const fn paper(title: &'static str, rows: usize, fields: usize, prompt_tokens: usize) -> Option<PaperTable> {
    Some(PaperTable { title, rows, fields, prompt_tokens, is_same: false })
}

/// The folder of the paper's tables in the benchmark Frontier-CS.
macro_rules! frontier_cs {
    ($size:literal, $file:literal) => {
        concat!(
            "https://raw.githubusercontent.com/FrontierCS/Frontier-CS/4d508c1954766e0dda0347e1f14946978ef6b761/research/problems/llm_sql/",
            $size,
            "/resources/datasets/",
            $file
        )
    };
}

const NO_LICENCE_REVIEWS: &str = "none stated; text by critics on Rotten Tomatoes";

static DATASETS: [Dataset; 11] = [
    Dataset {
        name: "movies",
        about: "reviews of films, with the film",
        columns: &[
            text("reviewcontent"),
            text("reviewtype"),
            text("topcritic"),
            text("rottentomatoeslink"),
            text("movietitle"),
            text("movieinfo"),
            text("genres"),
            text("productioncompany"),
        ],
        rows: 4_877,
        file: "movies",
        sha256: "6d454a28b58d4b28feb46efc7c0781076a7b0859ce6ed914e2ce39ab7f14e7f3",
        sources: &["https://github.com/Malika44/ML-Project"],
        licence: NO_LICENCE_REVIEWS,
        paper: paper("Movies", 15_000, 8, 276),
        download: Some(Download {
            url: frontier_cs!("small", "movies.csv"),
            file: "movies.csv",
            git_blob: "c254ed9d335979cf920407bab3826b4a2b9ee4fe",
        }),
    },
    Dataset {
        name: "movies_15k",
        about: "reviews of films, as many as in the paper",
        columns: &[
            text("reviewcontent"),
            text("reviewtype"),
            text("topcritic"),
            integer("movieid"),
            text("movieinfo"),
            text("genres"),
            text("director"),
            text("productioncompany"),
            text("contentrating"),
            text("publisher"),
            text("reviewscore"),
        ],
        rows: 15_000,
        file: "movies_15k",
        sha256: "29b13564899a3390e1ccbbf2ecb4745f2589895f9fec765e255c164d13637f33",
        sources: &["https://github.com/tstrain199/movie-type-analysis"],
        licence: NO_LICENCE_REVIEWS,
        paper: paper("Movies", 15_000, 8, 276),
        download: None,
    },
    Dataset {
        name: "products",
        about: "reviews of products, with the maker's description",
        columns: &[
            text("text"),
            text("description"),
            text("product_id"),
            text("review_title"),
            number("rating"),
            text("product_title"),
            text("category"),
            text("review_id"),
        ],
        rows: 9_493,
        file: "products",
        sha256: "19376fce65d31d6927b9ae0a0847cbc0785f4fa450f205bd24e8806ffc59f58b",
        sources: &["https://github.com/midhunrajds/Excel_Project_Amazon_Reviews"],
        licence: "CC BY-NC-SA 4.0",
        paper: paper("Products", 14_890, 8, 377),
        download: Some(Download {
            url: frontier_cs!("small", "products.csv"),
            file: "products.csv",
            git_blob: "db09c7d5786a16653c24ee21a5c1176f5dab3dbb",
        }),
    },
    Dataset {
        name: "bird",
        about: "posts of question sites, joined with the comments on them",
        columns: &[integer("PostId"), text("PostDate"), text("Body"), text("Text")],
        rows: 10_418,
        file: "bird",
        sha256: "30286da525dfb42ef6d1010a862a9a7e834a907ca8fc753356bbc8c66b0551ef",
        sources: &[
            "https://github.com/Jean-Low/StackERedes",
            "https://github.com/VanAnDuong/Text-analysis-for-the-History-Stack-Exchange",
            "https://github.com/Igodlab/stackexchangeparser",
        ],
        licence: "CC BY-SA 3.0 and 4.0",
        paper: paper("BIRD", 14_920, 4, 765),
        download: Some(Download {
            url: frontier_cs!("small", "BIRD.csv"),
            file: "bird.csv",
            git_blob: "c6b3044e3c1e5b4abaef53449c83efd1e9883963",
        }),
    },
    Dataset {
        name: "pdmx",
        about: "metadata of pieces of music; in place of sheet music, records of the Million Song Dataset",
        columns: &[
            number("artist_hotttnesss"),
            text("artist_id"),
            text("artist_name"),
            text("artist_mbtags"),
            number("artist_mbtags_count"),
            number("bars_confidence"),
            number("bars_start"),
            number("beats_confidence"),
            number("beats_start"),
            number("duration"),
            number("end_of_fade_in"),
            number("familiarity"),
            number("key"),
            number("key_confidence"),
            number("latitude"),
            text("location"),
            number("longitude"),
            number("loudness"),
            integer("mode"),
            number("mode_confidence"),
            integer("release_id"),
            text("release_name"),
            text("similar"),
            number("song_hotttnesss"),
            text("song_id"),
            number("start_of_fade_out"),
            number("tatums_confidence"),
            number("tatums_start"),
            number("tempo"),
            text("terms"),
            number("terms_freq"),
            number("time_signature"),
            number("time_signature_confidence"),
            text("title"),
            integer("year"),
        ],
        rows: 10_000,
        file: "pdmx_standin_music",
        sha256: "d317365573f956e3610843f22d1667331b88210de6b8e2844f6ef3c5e25bc39f",
        sources: &[
            "https://github.com/RealTimeWeb/datasets/blob/2fe5befd251c783744d000bd4763e277616a152f/datasets/csv/music/music.csv",
        ],
        licence: "GPL-2.0",
        paper: paper("PDMX", 10_000, 57, 738),
        download: Some(Download {
            url: frontier_cs!("large", "PDMX.csv"),
            file: "pdmx.csv",
            git_blob: "148153e5f5fff006dd3ad43ab9101b353a7eb6dd",
        }),
    },
    Dataset {
        name: "beer",
        about: "ratings of beers",
        columns: &[
            text("review/profileName"),
            integer("review/time"),
            text("review/overall"),
            text("review/taste"),
            text("review/palate"),
            text("review/appearance"),
            text("beer/name"),
            text("beer/style"),
            integer("beer/beerId"),
        ],
        rows: 28_479,
        file: "beer_full",
        sha256: "e22ab5e778570ae1b0a05c6bb37321f7e94b6e82999acda3ef4bbdadbec1fa87",
        sources: &["https://github.com/FrontierCS/Frontier-CS"],
        licence: "MIT; ratings from RateBeer",
        paper: Some(PaperTable { title: "Beer", rows: 28_479, fields: 8, prompt_tokens: 156, is_same: true }),
        download: Some(Download {
            url: frontier_cs!("small", "beer.csv"),
            file: "beer.csv",
            git_blob: "58fb7865493d0b062e5530a955567a4600db2234",
        }),
    },
    Dataset {
        name: "squad",
        about: "questions, and the paragraph that answers each",
        columns: &[text("question"), text("context"), text("title"), text("id"), text("answer"), text("answers_json")],
        rows: 10_570,
        file: "squad",
        sha256: "c4db8768a56085d1e6419c8dcc85b4f886d75c31455b2b3f7a300a63cec070db",
        sources: &["https://github.com/rajpurkar/SQuAD-explorer"],
        licence: "CC BY-SA 4.0",
        paper: None,
        download: None,
    },
    Dataset {
        name: "squad_rag",
        about: "questions of squad, and the four paragraphs that BM25 finds for each, best first",
        columns: &[text("question"), text("context1"), text("context2"), text("context3"), text("context4")],
        rows: 10_570,
        file: "squad_rag",
        sha256: "468b9756be657ba7048c1c08f3d6d58baf6bd53d573b65c64f8925c1eed66905",
        sources: &["https://github.com/rajpurkar/SQuAD-explorer"],
        licence: "CC BY-SA 4.0",
        paper: paper("SQuAD", 22_665, 5, 1_047),
        download: None,
    },
    Dataset {
        name: "fever_claims",
        about: "claims, and whether Wikipedia supports them",
        columns: &[integer("id"), text("claim"), text("label"), text("evidence_pages")],
        rows: 9_999,
        file: "fever_claims",
        sha256: "59d68abb2a88125358ed70cdaf86e4413bdbfe0e66f100c3ade6d697c26e7ec5",
        sources: &["https://github.com/zixianma/interactive-chains"],
        licence: "none stated",
        paper: None,
        download: None,
    },
    Dataset {
        name: "fever_evidence_pairs",
        about: "claims with a sentence that speaks for or against each; some sentences were altered on purpose",
        columns: &[
            integer("claim_id"),
            text("claim"),
            text("claim_label"),
            text("article"),
            text("evidence"),
            text("evidence_label"),
            text("source"),
        ],
        rows: 9_095,
        file: "fever_evidence_pairs",
        sha256: "e874b99233dd00e6064c15eb5a143b1c81fec9daf56ae55976ac473c9d9bde9d",
        sources: &["https://github.com/tdiggelm/climate-fever-dataset", "https://github.com/TalSchuster/FeverSymmetric"],
        licence: "none stated; FeverSymmetric MIT",
        paper: None,
        download: None,
    },
    Dataset {
        name: "fever_rag",
        about: "claims of fever_claims, and the four passages that BM25 finds for each, best first; not for accuracy",
        columns: &[text("claim"), text("evidence1"), text("evidence2"), text("evidence3"), text("evidence4")],
        rows: 9_999,
        file: "fever_rag",
        sha256: "928520dd240cc6c3a2e6e082a4ae747284cb26970fa5582b77fd51aa07bd278a",
        sources: &[
            "https://github.com/zixianma/interactive-chains",
            "https://github.com/tdiggelm/climate-fever-dataset",
            "https://github.com/TalSchuster/FeverSymmetric",
            "https://github.com/rajpurkar/SQuAD-explorer",
        ],
        licence: "none stated; FeverSymmetric MIT, SQuAD CC BY-SA 4.0",
        paper: paper("FEVER", 19_929, 5, 1_302),
        download: None,
    },
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_distinct_and_digests_are_whole() {
        let names: HashSet<&str> = datasets().iter().map(|dataset| dataset.name).collect();
        assert_eq!(names.len(), datasets().len());
        let is_hex =
            |digest: &str, length: usize| digest.len() == length && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
        for dataset in datasets() {
            assert!(is_hex(dataset.sha256, 64), "{}", dataset.name);
            assert!(dataset.download.is_none_or(|download| is_hex(download.git_blob, 40)), "{}", dataset.name);
            assert!(dataset.download.is_none_or(|download| download.url.starts_with("https://")), "{}", dataset.name);
        }
    }

    #[test]
    fn a_fetched_table_is_found_where_there_is_no_copy_in_parquet() {
        let folder = tempfile::tempdir().unwrap();
        let folders = [folder.path().to_owned()];
        let beer = dataset("beer").unwrap();
        assert_eq!(beer.local(&folders), None);
        for file in [beer.download.unwrap().file, "beer_full.parquet"] {
            std::fs::write(folder.path().join(file), "").unwrap();
            assert_eq!(beer.local(&folders), Some(folder.path().join(file)));
        }
    }
}
