//! Records of sheet music in no order, in the 57 columns of the paper's own table: `pdmx` in the paper's size.
//!
//! The collection (PDMX) could not be measured, so only its make-up is imitated: paths that nobody shares, flags that most records agree
//! on, a few licences, artists with several pieces, and numbers measured of each piece. Lengths and shares are plausible, no more.

use arrow_array::RecordBatch;
use arrow_schema::ArrowError;

use super::columns::{Columns, numbered};
use super::distribution::{Quantiles, Skew};
use super::text::{Words, code};
use crate::catalogue::{Column, Dataset, integer, number, text};
use crate::random::SplitMix64;

const ROWS: usize = 10_000;

/// What a column holds.
#[derive(Clone, Copy)]
enum Part {
    /// `True` in so many records of a hundred.
    Flag(usize),
    /// One of these, the first most often.
    OneOf(&'static [&'static str], Skew),
    /// A file named by a hash, in a folder.
    Path(&'static str),
    /// A name of so many characters, and how records share names. Nobody knows the first one.
    Name(Quantiles, Skew),
    /// A name of the piece alone.
    Title(Quantiles),
    /// A whole number, which is 0 in so many records of a hundred.
    Count(usize, Quantiles),
    /// A number with so many digits after the point.
    Measure(Quantiles, i32),
}

use Part::{Count, Flag, Measure, Name, OneOf, Path, Title};

const LICENCES: Skew = Skew(&[(1, 61.0), (2, 90.0), (3, 96.0), (5, 100.0)]);
const ARTISTS: Skew = Skew(&[(1, 55.0), (2, 57.0), (8, 63.0), (64, 76.0), (512, 90.0), (2_500, 100.0)]);
const GENRES: Skew = Skew(&[(1, 72.0), (2, 82.0), (4, 89.0), (8, 95.0), (30, 100.0)]);
const TAGS: Skew = Skew(&[(1, 75.0), (2, 77.0), (16, 84.0), (128, 91.0), (1_500, 100.0)]);
const TRACKS: Skew = Skew(&[(1, 52.0), (2, 64.0), (4, 74.0), (16, 87.0), (400, 100.0)]);
const NAME_CHARACTERS: Quantiles = Quantiles([2.0, 7.0, 10.0, 14.0, 20.0, 29.0, 55.0, 120.0]);
const TITLE_CHARACTERS: Quantiles = Quantiles([1.0, 8.0, 13.0, 20.0, 32.0, 46.0, 80.0, 180.0]);
/// Pieces of which a better version is known, and where that is.
const ELSEWHERE: Skew = Skew(&[(1, 92.0), (700, 100.0)]);
const PATH_CHARACTERS: Quantiles = Quantiles([63.0; 8]);
const FEW: Quantiles = Quantiles([1.0, 1.0, 1.0, 2.0, 4.0, 9.0, 60.0, 900.0]);
const MANY: Quantiles = Quantiles([3.0, 40.0, 90.0, 240.0, 800.0, 3_000.0, 40_000.0, 900_000.0]);
const BARS: Quantiles = Quantiles([1.0, 9.0, 17.0, 35.0, 72.0, 128.0, 330.0, 2_000.0]);
const SHARE: Quantiles = Quantiles([0.4, 0.86, 0.92, 0.96, 0.98, 0.99, 1.0, 1.0]);

/// The columns: name, what decides its values (columns with the same word there belong together), and what it holds.
const PARTS: [(&str, &str, Part); 57] = [
    ("path", "row", Path("./data/")),
    ("metadata", "row", Path("./metadata/")),
    ("hasmetadata", "metadata", Flag(99)),
    ("version", "version", OneOf(&["2", "1", "3"], Skew(&[(1, 88.0), (3, 100.0)]))),
    ("isuserpro", "pro", Flag(30)),
    ("isuserpublisher", "publisher", Flag(2)),
    ("isuserstaff", "staff", Flag(1)),
    ("haspaywall", "paywall", Flag(1)),
    ("israted", "rated", Flag(6)),
    ("isofficial", "official", Flag(1)),
    ("isoriginal", "original", Flag(24)),
    ("isdraft", "draft", Flag(1)),
    ("hascustomaudio", "audio", Flag(1)),
    ("hascustomvideo", "video", Flag(1)),
    ("ncomments", "row", Count(85, FEW)),
    ("nfavorites", "row", Count(45, FEW)),
    ("nviews", "row", Count(2, MANY)),
    ("nratings", "row", Count(94, FEW)),
    ("rating", "row", Count(94, Quantiles([1.0, 3.0, 4.0, 5.0, 5.0, 5.0, 5.0, 5.0]))),
    ("license", "license", OneOf(&["publicdomain", "cc-zero", "cc-by", "cc-by-sa", "all-rights-reserved"], LICENCES)),
    (
        "licenseurl",
        "license",
        OneOf(
            &[
                "https://creativecommons.org/publicdomain/mark/1.0/",
                "https://creativecommons.org/publicdomain/zero/1.0/",
                "https://creativecommons.org/licenses/by/4.0/",
                "https://creativecommons.org/licenses/by-sa/4.0/",
                "none",
            ],
            LICENCES,
        ),
    ),
    ("licenseconflict", "conflict", Flag(12)),
    ("genres", "genres", Name(NAME_CHARACTERS, GENRES)),
    ("groups", "groups", Name(NAME_CHARACTERS, Skew(&[(1, 92.0), (8, 94.0), (600, 100.0)]))),
    ("tags", "tags", Name(TITLE_CHARACTERS, TAGS)),
    ("songname", "row", Title(TITLE_CHARACTERS)),
    ("title", "row", Title(TITLE_CHARACTERS)),
    ("subtitle", "subtitle", Name(TITLE_CHARACTERS, Skew(&[(1, 80.0), (6_000, 100.0)]))),
    ("artistname", "artist", Name(NAME_CHARACTERS, ARTISTS)),
    ("composername", "artist", Name(NAME_CHARACTERS, ARTISTS)),
    ("publisher", "house", Name(NAME_CHARACTERS, Skew(&[(1, 96.0), (60, 100.0)]))),
    ("complexity", "complexity", OneOf(&["0", "1", "2", "3"], Skew(&[(1, 40.0), (2, 70.0), (4, 100.0)]))),
    ("ntracks", "tracks", OneOf(&["1", "2", "4", "3", "5", "8"], Skew(&[(1, 52.0), (2, 64.0), (4, 87.0), (6, 100.0)]))),
    ("tracks", "tracks", Name(Quantiles([1.0, 1.0, 1.0, 4.0, 11.0, 20.0, 50.0, 120.0]), TRACKS)),
    ("songlength", "row", Count(1, MANY)),
    ("songlengthseconds", "row", Measure(BARS, 2)),
    ("songlengthbars", "row", Measure(BARS, 1)),
    ("songlengthbeats", "row", Measure(MANY, 1)),
    ("nnotes", "row", Count(1, MANY)),
    ("notesperbar", "row", Measure(Quantiles([1.0, 3.0, 5.0, 8.0, 14.0, 25.0, 70.0, 400.0]), 2)),
    ("nannotations", "row", Count(10, FEW)),
    ("hasannotations", "annotations", Flag(97)),
    ("nlyrics", "row", Count(80, MANY)),
    ("haslyrics", "lyrics", Flag(20)),
    ("ntokens", "row", Count(1, MANY)),
    ("pitchclassentropy", "row", Measure(Quantiles([0.0, 2.1, 2.5, 2.7, 2.9, 3.1, 3.4, 3.6]), 4)),
    ("scaleconsistency", "row", Measure(SHARE, 4)),
    ("grooveconsistency", "row", Measure(SHARE, 4)),
    ("bestpath", "other", Name(PATH_CHARACTERS, ELSEWHERE)),
    ("isbestpath", "best", Flag(92)),
    ("bestarrangement", "other", Name(PATH_CHARACTERS, ELSEWHERE)),
    ("isbestarrangement", "arrangement", Flag(95)),
    ("bestuniquearrangement", "other", Name(PATH_CHARACTERS, ELSEWHERE)),
    ("isbestuniquearrangement", "arrangement", Flag(95)),
    ("subsetall", "metadata", Flag(99)),
    ("subsetrated", "rated", Flag(6)),
    ("subsetdeduplicated", "best", Flag(92)),
];

static COLUMNS: [Column; 57] = columns();

const fn columns() -> [Column; 57] {
    let mut columns = [text(""); 57];
    let mut at = 0;
    while at < columns.len() {
        let (name, _, part) = PARTS[at];
        columns[at] = match part {
            Count(..) => integer(name),
            Measure(..) => number(name),
            Flag(_) | OneOf(..) | Path(_) | Name(..) | Title(_) => text(name),
        };
        at += 1;
    }
    columns
}

/// Returns the code of each row.
fn codes(part: Part, mut random: SplitMix64) -> Vec<u32> {
    match part {
        Flag(percent) => (0..ROWS).map(|_| u32::from(random.percent(percent))).collect(),
        OneOf(_, skew) | Name(_, skew) => (0..ROWS).map(|_| skew.draw(&mut random)).collect(),
        Path(_) | Title(_) | Count(..) | Measure(..) => numbered(ROWS),
    }
}

pub(super) fn pdmx(dataset: &Dataset, rows: usize, random: SplitMix64) -> Result<RecordBatch, ArrowError> {
    let (words, dataset) = (Words::new(), Dataset { columns: &COLUMNS, ..*dataset });
    let mut columns = Columns::new(&dataset, random.clone(), rows);
    for (_, group, part) in PARTS {
        let codes = codes(part, random.part(group, 0));
        match part {
            Flag(_) => columns.text(&codes, |is_true, _| ["False", "True"][is_true as usize]),
            OneOf(texts, _) => columns.text(&codes, |at, _| texts[at as usize]),
            Path(folder) => columns.text(&codes, |row, _| path(folder, &mut random.part(folder, u64::from(row)))),
            Name(characters, _) => columns.nullable_text(&codes, |name, random| {
                (name > 0).then(|| words.title(characters.length(random).max(1), 40, random))
            }),
            Title(characters) => columns.text(&codes, |_, random| words.title(characters.length(random).max(1), 30, random)),
            Count(zero, others) => columns
                .integer(&codes, |_, random| if random.percent(zero) { 0 } else { others.draw(random).round() as i64 }),
            Measure(others, digits) => columns.number(&codes, |_, random| {
                let scale = 10_f64.powi(digits);
                Some((others.draw(random) * scale).round() / scale)
            }),
        }
    }
    columns.finish()
}

/// Writes the path of a file that is named by what it holds, as the collection has them.
fn path(folder: &str, random: &mut SplitMix64) -> String {
    const BASE_58: &str = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
    let place = [random.below(10), random.below(100)];
    code(&format!("{folder}{}/{}/Qm", place[0], place[1]), BASE_58, 44, random) + ".json"
}
