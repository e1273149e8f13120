//! Benchmark tables that lie on this machine.

use std::path::{Path, PathBuf};

/// File endings under which a table may lie, in the order in which they are tried.
const ENDINGS: [&str; 3] = ["parquet", "csv", "json"];

/// Returns the folders where tables may lie: the one that the caller names, then `shared/data` beside the checkout that is in
/// `checkout`; in each its part `queries` first.
pub fn folders(named: Option<PathBuf>, checkout: &Path) -> Vec<PathBuf> {
    let beside = checkout.join("../shared/data");
    named.into_iter().chain([beside]).flat_map(|folder| [folder.join("queries"), folder]).collect()
}

/// Returns the file of the table `name` (such as `movies`) in the first of `folders` that has one.
///
/// A name is one part of a path: anything that would lead out of the folders is not found.
pub fn find(name: &str, folders: &[PathBuf]) -> Option<PathBuf> {
    if Path::new(name).file_name()? != name {
        return None;
    }
    let candidates = folders.iter().flat_map(|folder| ENDINGS.map(|ending| folder.join(format!("{name}.{ending}"))));
    candidates.into_iter().find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_folder_and_the_first_ending_win() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let folders = [first.path().to_owned(), second.path().to_owned()];
        let write = |folder: &Path, name: &str| std::fs::write(folder.join(name), "").unwrap();
        write(second.path(), "beer.parquet");
        write(second.path(), "movies.parquet");
        write(first.path(), "movies.csv");
        assert_eq!(find("movies", &folders), Some(first.path().join("movies.csv")));
        assert_eq!(find("beer", &folders), Some(second.path().join("beer.parquet")));
        assert_eq!(find("squad", &folders), None);
    }

    #[test]
    fn the_named_folder_is_searched_before_the_one_beside_the_checkout() {
        let folder = tempfile::tempdir().unwrap();
        let (named, checkout) = (folder.path().join("named"), folder.path().join("checkout"));
        let beside = folder.path().join("shared/data/queries");
        [&named, &checkout, &beside].iter().for_each(|folder| std::fs::create_dir_all(folder).unwrap());
        std::fs::write(beside.join("beer.parquet"), "").unwrap();
        assert!(find("beer", &folders(None, &checkout)).is_some_and(|file| file.ends_with("data/queries/beer.parquet")));
        std::fs::write(named.join("beer.csv"), "").unwrap();
        assert_eq!(find("beer", &folders(Some(named.clone()), &checkout)), Some(named.join("beer.csv")));
    }

    #[test]
    fn names_do_not_lead_out_of_the_folders() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.csv"), "").unwrap();
        let inner = folder.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        for name in ["../a", "/etc/passwd", "", "..", "inner/../a"] {
            assert_eq!(find(name, std::slice::from_ref(&inner)), None, "{name}");
        }
    }
}
