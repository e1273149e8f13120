//! Values as JSON text in a prompt, written as Python's `json.dumps(…, ensure_ascii=False)` writes them.

use std::fmt::Write as _;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, LargeStringArray, OffsetSizeTrait, PrimitiveArray, StringArray, StringViewArray,
};
use datafusion::arrow::datatypes::{
    ArrowPrimitiveType, DataType, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    RunEndIndexType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::common::{Result, exec_err};

/// Writes the values of one array as JSON text.
pub struct JsonRenderer<'a> {
    array: &'a dyn Array,
    values: Values<'a>,
}

/// Appends the value of a row.
type Writer<'a> = Box<dyn Fn(usize, &mut String) + Send + Sync + 'a>;
/// Returns where the value of a row stands.
type Position<'a> = Box<dyn Fn(usize) -> usize + Send + Sync + 'a>;
/// Returns from where to where the items of a row stand.
type Range<'a> = Box<dyn Fn(usize) -> (usize, usize) + Send + Sync + 'a>;

enum Values<'a> {
    Null,
    Boolean(&'a BooleanArray),
    Number(Writer<'a>),
    Text(&'a StringArray),
    LargeText(&'a LargeStringArray),
    TextView(&'a StringViewArray),
    /// Decimals, whose text is a JSON number.
    Plain(ArrayFormatter<'a>),
    /// Dates, times, timestamps, intervals.
    Quoted(ArrayFormatter<'a>),
    /// Values behind keys: dictionaries and runs.
    Keyed(Position<'a>, Box<JsonRenderer<'a>>),
    List(Range<'a>, Box<JsonRenderer<'a>>),
    Struct(Vec<(String, JsonRenderer<'a>)>),
    Map(Range<'a>, Box<JsonRenderer<'a>>, Box<JsonRenderer<'a>>),
}

/// How dates and times are written; the text of a value that cannot be written is its error.
const FORMAT: FormatOptions<'static> = FormatOptions::new().with_display_error(true);

impl<'a> JsonRenderer<'a> {
    /// Prepares to write the values of `array`. Fails if its type has no text, as binary has none.
    pub fn new(array: &'a dyn Array) -> Result<JsonRenderer<'a>> {
        let values = match array.data_type() {
            DataType::Null => Values::Null,
            DataType::Boolean => Values::Boolean(array.as_boolean()),
            DataType::Int8 => number::<Int8Type>(array),
            DataType::Int16 => number::<Int16Type>(array),
            DataType::Int32 => number::<Int32Type>(array),
            DataType::Int64 => number::<Int64Type>(array),
            DataType::UInt8 => number::<UInt8Type>(array),
            DataType::UInt16 => number::<UInt16Type>(array),
            DataType::UInt32 => number::<UInt32Type>(array),
            DataType::UInt64 => number::<UInt64Type>(array),
            DataType::Float16 => float::<Float16Type>(array),
            DataType::Float32 => float::<Float32Type>(array),
            DataType::Float64 => float::<Float64Type>(array),
            DataType::Utf8 => Values::Text(array.as_string()),
            DataType::LargeUtf8 => Values::LargeText(array.as_string()),
            DataType::Utf8View => Values::TextView(array.as_string_view()),
            decimal if decimal.is_decimal() => Values::Plain(ArrayFormatter::try_new(array, &FORMAT)?),
            temporal if temporal.is_temporal() || matches!(temporal, DataType::Interval(_)) => {
                Values::Quoted(ArrayFormatter::try_new(array, &FORMAT)?)
            }
            DataType::Dictionary(_, _) => {
                let dictionary = array.as_any_dictionary();
                if dictionary.values().is_empty() {
                    // Every key is NULL; there is nothing to look up.
                    Values::Null
                } else {
                    let keys = dictionary.normalized_keys();
                    Values::Keyed(Box::new(move |row| keys[row]), Box::new(Self::new(dictionary.values().as_ref())?))
                }
            }
            DataType::RunEndEncoded(ends, _) => match ends.data_type() {
                DataType::Int16 => runs::<Int16Type>(array)?,
                DataType::Int32 => runs::<Int32Type>(array)?,
                _ => runs::<Int64Type>(array)?,
            },
            DataType::List(_) => list::<i32>(array)?,
            DataType::LargeList(_) => list::<i64>(array)?,
            DataType::ListView(_) => list_view::<i32>(array)?,
            DataType::LargeListView(_) => list_view::<i64>(array)?,
            DataType::FixedSizeList(_, _) => {
                let lists = array.as_fixed_size_list();
                let length = lists.value_length() as usize;
                let range = move |row| (row * length, row * length + length);
                Values::List(Box::new(range), Box::new(Self::new(lists.values().as_ref())?))
            }
            DataType::Struct(fields) => {
                let columns = array.as_struct().columns();
                let names = fields.iter().map(|field| quoted(field.name()));
                let renderers = columns.iter().map(|column| Self::new(column.as_ref()));
                let parts = names.zip(renderers).map(|(name, renderer)| Ok((name, renderer?)));
                Values::Struct(parts.collect::<Result<Vec<_>>>()?)
            }
            DataType::Map(_, _) => {
                let maps = array.as_map();
                let offsets = maps.value_offsets();
                let range = move |row: usize| (offsets[row] as usize, offsets[row + 1] as usize);
                let (keys, values) = (Self::new(maps.keys().as_ref())?, Self::new(maps.values().as_ref())?);
                Values::Map(Box::new(range), Box::new(keys), Box::new(values))
            }
            other => {
                return exec_err!(
                    "cannot put a value of type {other} into a prompt; cast it to VARCHAR, or encode it as text"
                );
            }
        };
        Ok(JsonRenderer { array, values })
    }

    /// Appends the value of a row.
    pub fn write(&self, row: usize, out: &mut String) {
        if self.array.is_null(row) {
            out.push_str("null");
            return;
        }
        match &self.values {
            Values::Null => out.push_str("null"),
            Values::Boolean(values) => out.push_str(if values.value(row) { "true" } else { "false" }),
            Values::Number(write) => write(row, out),
            Values::Text(values) => write_string(values.value(row), out),
            Values::LargeText(values) => write_string(values.value(row), out),
            Values::TextView(values) => write_string(values.value(row), out),
            Values::Plain(formatter) => write_display(&formatter.value(row), out),
            Values::Quoted(formatter) => write_string(&formatter.value(row).to_string(), out),
            Values::Keyed(key, values) => values.write(key(row), out),
            Values::List(range, items) => {
                let (start, end) = range(row);
                out.push('[');
                for item in start..end {
                    out.push_str(if item > start { ", " } else { "" });
                    items.write(item, out);
                }
                out.push(']');
            }
            Values::Struct(fields) => {
                out.push('{');
                for (position, (name, values)) in fields.iter().enumerate() {
                    out.push_str(if position > 0 { ", " } else { "" });
                    out.push_str(name);
                    out.push_str(": ");
                    values.write(row, out);
                }
                out.push('}');
            }
            Values::Map(range, keys, values) => {
                let (start, end) = range(row);
                out.push('{');
                for entry in start..end {
                    out.push_str(if entry > start { ", " } else { "" });
                    keys.write_key(entry, out);
                    out.push_str(": ");
                    values.write(entry, out);
                }
                out.push('}');
            }
        }
    }

    /// Appends a value as the key of an object: a string stays, all else is put in quotes.
    fn write_key(&self, row: usize, out: &mut String) {
        let mut key = String::new();
        self.write(row, &mut key);
        if key.starts_with('"') { out.push_str(&key) } else { write_string(&key, out) }
    }

    /// Returns the text of a row.
    pub fn text(&self, row: usize) -> String {
        let mut out = String::new();
        self.write(row, &mut out);
        out
    }
}

impl std::fmt::Debug for JsonRenderer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "JsonRenderer({})", self.array.data_type())
    }
}

/// Returns the texts of the items of a list, given the list as [`JsonRenderer`] writes it; none of a text that is no list.
pub fn list_items(json: &str) -> Vec<&str> {
    let Some(inner) = json.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) else { return vec![] };
    let (mut items, mut start, mut depth, mut in_string, mut is_escaped) = (vec![], 0, 0_usize, false, false);
    for (at, byte) in inner.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = in_string,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            b',' if depth == 0 => {
                items.push(inner[start..at].trim_start());
                start = at + 1;
            }
            _ => {}
        }
    }
    if !inner.is_empty() {
        items.push(inner[start..].trim_start());
    }
    items
}

fn number<'a, T: ArrowPrimitiveType>(array: &'a dyn Array) -> Values<'a>
where
    T::Native: std::fmt::Display,
{
    let values: &PrimitiveArray<T> = array.as_primitive();
    Values::Number(Box::new(move |row, out| write_display(&values.value(row), out)))
}

/// Floats in their shortest form, with a point or an exponent; JSON has no NaN and no infinity, so these are null.
fn float<'a, T: ArrowPrimitiveType>(array: &'a dyn Array) -> Values<'a>
where
    T::Native: std::fmt::Debug + Into<f64>,
{
    let values: &PrimitiveArray<T> = array.as_primitive();
    Values::Number(Box::new(move |row, out| {
        let value = values.value(row);
        if Into::<f64>::into(value).is_finite() {
            write_display(&format_args!("{value:?}"), out);
        } else {
            out.push_str("null");
        }
    }))
}

fn runs<'a, R: RunEndIndexType>(array: &'a dyn Array) -> Result<Values<'a>> {
    let Some(runs) = array.as_run_opt::<R>() else {
        return exec_err!("cannot read runs of type {}", array.data_type());
    };
    let values = JsonRenderer::new(runs.values().as_ref())?;
    Ok(Values::Keyed(Box::new(move |row| runs.get_physical_index(row)), Box::new(values)))
}

fn list<'a, O: OffsetSizeTrait>(array: &'a dyn Array) -> Result<Values<'a>> {
    let lists = array.as_list::<O>();
    let offsets = lists.value_offsets();
    let range = move |row: usize| (offsets[row].as_usize(), offsets[row + 1].as_usize());
    Ok(Values::List(Box::new(range), Box::new(JsonRenderer::new(lists.values().as_ref())?)))
}

fn list_view<'a, O: OffsetSizeTrait>(array: &'a dyn Array) -> Result<Values<'a>> {
    let lists = array.as_list_view::<O>();
    let (offsets, sizes) = (lists.value_offsets(), lists.value_sizes());
    let range = move |row: usize| (offsets[row].as_usize(), offsets[row].as_usize() + sizes[row].as_usize());
    Ok(Values::List(Box::new(range), Box::new(JsonRenderer::new(lists.values().as_ref())?)))
}

fn write_display(value: &dyn std::fmt::Display, out: &mut String) {
    write!(out, "{value}").expect("writing to a string cannot fail");
}

fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    write_string(text, &mut out);
    out
}

/// Appends a JSON string; only quotes, backslashes and control characters are escaped.
fn write_string(text: &str, out: &mut String) {
    out.push('"');
    let mut plain = 0;
    for (position, byte) in text.bytes().enumerate() {
        let escape = match byte {
            b'"' => "\\\"",
            b'\\' => "\\\\",
            b'\n' => "\\n",
            b'\r' => "\\r",
            b'\t' => "\\t",
            0x08 => "\\b",
            0x0c => "\\f",
            0x00..=0x1f => "",
            _ => continue,
        };
        out.push_str(&text[plain..position]);
        if escape.is_empty() {
            write_display(&format_args!("\\u{byte:04x}"), out);
        } else {
            out.push_str(escape);
        }
        plain = position + 1;
    }
    out.push_str(&text[plain..]);
    out.push('"');
}

/// Returns the JSON text of every row of an array. Fails if its type has no text.
pub fn render(array: &ArrayRef) -> Result<Vec<String>> {
    let renderer = JsonRenderer::new(array.as_ref())?;
    Ok((0..array.len()).map(|row| renderer.text(row)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use datafusion::common::ScalarValue;
    use datafusion::prelude::SessionContext;
    use proptest::prelude::*;

    /// Renders the value of a SQL expression.
    async fn sql(expr: &str) -> String {
        let frame = SessionContext::new().sql(&format!("SELECT {expr} AS x")).await.unwrap();
        let batches = frame.collect().await.unwrap();
        render(batches[0].column(0)).unwrap().remove(0)
    }

    macro_rules! check {
        ($expr:expr, $expected:expr) => {
            assert_eq!(sql($expr).await, $expected, "{}", $expr)
        };
    }

    #[tokio::test]
    async fn lists_are_taken_apart_as_they_were_written() {
        for (list, items) in [
            (r#"['a', 'b,]\" "c']"#, &[r#""a""#, r#""b,]\\\" \"c""#][..]),
            ("[[1, 2], []]", &["[1, 2]", "[]"]),
            ("[{x: 'a}', y: [1]}, NULL]", &[r#"{"x": "a}", "y": [1]}"#, "null"]),
            ("arrow_cast([], 'List(Utf8)')", &[]),
            ("NULL", &[]),
        ] {
            assert_eq!(list_items(&sql(list).await), items, "{list}");
        }
    }

    #[tokio::test]
    async fn writes_every_type() {
        check!("'a'", r#""a""#);
        check!("arrow_cast('a', 'LargeUtf8')", r#""a""#);
        check!("arrow_cast('a', 'Utf8View')", r#""a""#);
        check!("arrow_cast('a', 'Dictionary(Int32, Utf8)')", r#""a""#);
        check!("42", "42");
        check!("arrow_cast(7, 'UInt8')", "7");
        check!("1.0", "1.0");
        check!("0.1::float", "0.1");
        check!("'NaN'::double", "null");
        check!("12.50::decimal(5, 2)", "12.50");
        check!("true", "true");
        check!("NULL", "null");
        check!("NULL::varchar", "null");
        check!("date '2024-02-29'", r#""2024-02-29""#);
        check!("timestamp '2024-02-29 12:30:00'", r#""2024-02-29T12:30:00""#);
        check!("['a', NULL]", r#"["a", null]"#);
        check!("arrow_cast([1, 2], 'LargeList(Int64)')", "[1, 2]");
        check!("arrow_cast([1, 2], 'FixedSizeList(2, Int64)')", "[1, 2]");
        check!("named_struct('a', 1, 'b', ['x'])", r#"{"a": 1, "b": ["x"]}"#);
        check!("MAP {'k': 1}", r#"{"k": 1}"#);
        check!("MAP {1: 'v'}", r#"{"1": "v"}"#);
    }

    #[test]
    fn escapes_as_json_does() {
        assert_eq!(quoted("a\"b\\c\nd\te\u{1}f\u{7f}é😀"), "\"a\\\"b\\\\c\\nd\\te\\u0001f\u{7f}é😀\"");
    }

    #[test]
    fn binary_is_an_error() {
        let array = ScalarValue::Binary(Some(vec![1])).to_array().unwrap();
        let error = render(&array).unwrap_err().strip_backtrace();
        assert_eq!(
            error,
            "Execution error: cannot put a value of type Binary into a prompt; cast it to VARCHAR, or encode it as text"
        );
    }

    #[test]
    fn rows_of_a_slice_are_its_own() {
        let array: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), None, Some("c")]));
        assert_eq!(render(&array.slice(1, 2)).unwrap(), ["null", r#""c""#]);
        let dictionary = datafusion::arrow::compute::cast(
            &array,
            &DataType::Dictionary(Box::new(DataType::Int8), Box::new(DataType::Utf8)),
        );
        assert_eq!(render(&dictionary.unwrap().slice(1, 2)).unwrap(), ["null", r#""c""#]);
    }

    proptest! {
        #[test]
        fn strings_are_json(text in "\\PC*|[\\x00-\\x7f]*") {
            prop_assert_eq!(serde_json::from_str::<String>(&quoted(&text)).unwrap(), text);
        }

        #[test]
        fn floats_are_json(value in any::<f64>()) {
            let array = ScalarValue::Float64(Some(value)).to_array().unwrap();
            let text = render(&array).unwrap().remove(0);
            let parsed: Option<f64> = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(parsed.unwrap_or(f64::NAN).is_finite(), value.is_finite());
        }
    }
}
