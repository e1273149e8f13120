//! Plots of a report: bars in groups, laid out here and drawn as SVG by the template.

use serde::Serialize;

/// Where bars begin, what the longest takes, and what is left for its number.
const LEFT: f64 = 210.0;
const LENGTH: f64 = 560.0;
const RIGHT: f64 = 90.0;
/// A bar with its margin, and what is between two groups.
const BAR: f64 = 13.0;
const GAP: f64 = 9.0;
/// Room for the legend, of so many series in a line.
const LEGEND_LINE: f64 = 18.0;
const LEGEND_COLUMNS: usize = 4;
const LEGEND_COLUMN: f64 = (LEFT + LENGTH + RIGHT) / LEGEND_COLUMNS as f64;

/// A number, and the least and the greatest that was measured of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Point {
    pub(super) value: f64,
    pub(super) spread: Option<[f64; 2]>,
}

impl Point {
    /// A number that is what it is.
    pub(super) fn exact(value: f64) -> Self {
        Point { value, spread: None }
    }
}

/// A plot that is laid out.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Plot {
    title: String,
    width: f64,
    height: f64,
    /// A place for the name of each series that has a bar.
    legend: Vec<Mark>,
    /// A place for the name of each group.
    groups: Vec<Mark>,
    bars: Vec<Bar>,
}

/// A text at a place, of a series or of a group.
#[derive(Debug, PartialEq, Serialize)]
struct Mark {
    of: usize,
    x: f64,
    y: f64,
    text: String,
}

#[derive(Debug, PartialEq, Serialize)]
struct Bar {
    series: usize,
    x: f64,
    y: f64,
    length: f64,
    /// Where its spread begins and ends.
    spread: Option<[f64; 2]>,
    text: String,
}

/// Lays a plot out: a group is a name and a number for each of `series`, where there is one. `None` if there is nothing to show.
pub(super) fn plot(
    title: &str,
    series: &[&str],
    groups: Vec<(String, Vec<Option<Point>>)>,
    show: impl Fn(f64) -> String,
) -> Option<Plot> {
    // Series that no group has take no place.
    let used: Vec<usize> = (0..series.len()).filter(|at| groups.iter().any(|(_, points)| points[*at].is_some())).collect();
    let points = groups.iter().flat_map(|(_, points)| points.iter().flatten());
    let longest =
        points.map(|point| point.spread.map_or(point.value, |[_, high]| high.max(point.value))).fold(0.0, f64::max);
    if used.is_empty() || longest <= 0.0 {
        return None;
    }
    let scale = |value: f64| LENGTH * value / longest;
    let mut y = LEGEND_LINE * used.len().div_ceil(LEGEND_COLUMNS) as f64 + GAP;
    let (mut marks, mut bars) = (vec![], vec![]);
    for (group, (name, points)) in groups.into_iter().enumerate() {
        let first = y;
        for (series, point) in points.into_iter().enumerate() {
            let Some(Point { value, spread }) = point else { continue };
            let spread = spread.map(|[low, high]| [LEFT + scale(low), LEFT + scale(high)]);
            bars.push(Bar { series, x: LEFT, y, length: scale(value), spread, text: show(value) });
            y += BAR;
        }
        if y > first {
            marks.push(Mark { of: group, x: LEFT - GAP, y: (first + y) / 2.0, text: name });
            y += GAP;
        }
    }
    let place = |at: usize| ((at % LEGEND_COLUMNS) as f64 * LEGEND_COLUMN, (at / LEGEND_COLUMNS) as f64 * LEGEND_LINE);
    let legend = used.iter().enumerate().map(|(at, of)| {
        let (x, y) = place(at);
        Mark { of: *of, x, y, text: series[*of].to_owned() }
    });
    Some(Plot {
        title: title.to_owned(),
        width: LEFT + LENGTH + RIGHT,
        height: y,
        legend: legend.collect(),
        groups: marks,
        bars,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_numbers_and_unused_series_take_no_place() {
        let series = ["a", "never", "b"];
        let spread = Point { value: 2.0, spread: Some([1.0, 4.0]) };
        let groups = vec![
            ("one".to_owned(), vec![Some(Point::exact(1.0)), None, Some(spread)]),
            ("none".to_owned(), vec![None, None, None]),
            ("two".to_owned(), vec![None, None, Some(Point::exact(3.0))]),
        ];
        let plot = plot("t", &series, groups, |value| format!("{value} x")).unwrap();
        let bars: Vec<(usize, f64, &str)> =
            plot.bars.iter().map(|bar| (bar.series, bar.length, bar.text.as_str())).collect();
        assert_eq!(bars, [(0, LENGTH / 4.0, "1 x"), (2, LENGTH / 2.0, "2 x"), (2, 0.75 * LENGTH, "3 x")]);
        assert_eq!(plot.bars[1].spread, Some([LEFT + LENGTH / 4.0, LEFT + LENGTH]));
        assert_eq!(plot.groups.iter().map(|mark| mark.text.as_str()).collect::<Vec<_>>(), ["one", "two"]);
        assert_eq!(plot.legend.iter().map(|mark| (mark.of, mark.text.as_str())).collect::<Vec<_>>(), [(0, "a"), (2, "b")]);
        assert_eq!(plot.height, LEGEND_LINE + GAP + 3.0 * BAR + 2.0 * GAP);
        assert_eq!(super::plot("t", &series, vec![], |_| String::new()), None);
    }
}
