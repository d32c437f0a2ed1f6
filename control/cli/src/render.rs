//! Text for people: units, tables, colours. Nothing here knows what it shows.

use std::borrow::Cow;

use anstyle::{AnsiColor, Style};
use unicode_width::UnicodeWidthStr;

use crate::{context::Context, failure::Failure};

pub(crate) const BOLD: Style = Style::new().bold();
pub(crate) const DIM: Style = Style::new().dimmed();
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
pub(crate) const WARN: Style = AnsiColor::Yellow.on_default();
pub(crate) const BAD: Style = AnsiColor::Red.on_default();
pub(crate) const NAME: Style = AnsiColor::Cyan.on_default();

/// What stands where there is no value.
pub(crate) const NONE: &str = "-";

/// A style for the words of states that the API uses.
pub(crate) fn state_style(state: &str) -> Style {
    match state {
        "up" | "established" => GOOD,
        "connecting" | "signalling" | "establishing" | "closing" | "one_way" => WARN,
        "down" | "lost" | "broken" | "no_path" => BAD,
        _ => Style::new(),
    }
}

/// Text from elsewhere (another node chose it) that cannot steer the terminal.
pub(crate) fn clean(text: &str) -> Cow<'_, str> {
    let harmful = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if text.contains(harmful) {
        text.chars()
            .map(|c| {
                if harmful(c) {
                    c.escape_unicode().to_string()
                } else {
                    c.to_string()
                }
            })
            .collect()
    } else {
        Cow::Borrowed(text)
    }
}

/// [`clean`] of every line.
pub(crate) fn clean_lines(text: &str) -> String {
    text.lines().map(clean).collect::<Vec<_>>().join("\n")
}

/// Milliseconds, three digits.
pub(crate) fn milliseconds(ms: f64) -> String {
    match ms {
        ms if ms < 1.0 => format!("{ms:.3} ms"),
        ms if ms < 10.0 => format!("{ms:.2} ms"),
        ms if ms < 100.0 => format!("{ms:.1} ms"),
        ms => format!("{ms:.0} ms"),
    }
}

/// A time span in its two largest units.
pub(crate) fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{:02}s", seconds % 60),
        3600..86_400 => format!("{hours}h{minutes:02}m"),
        _ => format!("{days}d{hours:02}h"),
    }
}

/// Bytes in binary units.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A count with its thousands apart.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A share of one, as percent.
pub(crate) fn percent(share: f64) -> String {
    match share * 100.0 {
        p if p <= 0.0 => "0%".into(),
        p if p < 0.1 => "<0.1%".into(),
        p if p < 10.0 => format!("{p:.1}%"),
        p => format!("{p:.0}%"),
    }
}

/// Megabits per second.
pub(crate) fn capacity(mbps: f64) -> String {
    match mbps {
        m if m >= 1000.0 => format!("{:.1} Gbit/s", m / 1000.0),
        m if m >= 10.0 => format!("{m:.0} Mbit/s"),
        m if m >= 1.0 => format!("{m:.1} Mbit/s"),
        m => format!("{:.0} kbit/s", m * 1000.0),
    }
}

/// `1 node`, `2 nodes`.
pub(crate) fn plural(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// Columns of text, aligned.
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
    indent: usize,
}

struct Column {
    title: &'static str,
    align: Align,
    /// May be left out where the terminal is too narrow for all.
    optional: bool,
}

/// On which side the text of a column stands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// Text with a style.
pub(crate) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    pub(crate) fn new(text: impl AsRef<str>, style: Style) -> Self {
        let text = clean(text.as_ref());
        Self {
            text: if text.is_empty() {
                NONE.to_owned()
            } else {
                text.into_owned()
            },
            style,
        }
    }

    /// The text, or what stands for none.
    pub(crate) fn maybe(text: Option<impl AsRef<str>>) -> Self {
        text.map_or_else(
            || Self::new(NONE, DIM),
            |text| Self::new(text, Style::new()),
        )
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text, Style::new())
    }
}

/// Between two columns.
const GAP: usize = 2;

impl Table {
    /// Columns by their titles. `?` before a title: left out first on a narrow terminal, from the right; `>`: the
    /// column stands right.
    pub(crate) fn new(titles: &[&'static str]) -> Self {
        let column = |title: &&'static str| {
            let (title, optional) = title
                .strip_prefix('?')
                .map_or((*title, false), |title| (title, true));
            let (title, align) = title
                .strip_prefix('>')
                .map_or((title, Align::Left), |title| (title, Align::Right));
            Column {
                title,
                align,
                optional,
            }
        };
        Self {
            columns: titles.iter().map(column).collect(),
            rows: Vec::new(),
            indent: 0,
        }
    }

    /// Without a header line.
    pub(crate) fn bare(aligns: &[Align]) -> Self {
        let columns = aligns
            .iter()
            .map(|&align| Column {
                title: "",
                align,
                optional: false,
            })
            .collect();
        Self {
            columns,
            rows: Vec::new(),
            indent: 0,
        }
    }

    pub(crate) fn indented(mut self, by: usize) -> Self {
        self.indent = by;
        self
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        let row: Vec<Cell> = cells.into_iter().collect();
        debug_assert_eq!(row.len(), self.columns.len());
        self.rows.push(row);
    }

    pub(crate) fn print(&self, context: &mut Context) -> Result<(), Failure> {
        let text = self.to_text(context.width(), |style, text| context.paint(style, text));
        context.text(&text)
    }

    fn to_text(&self, room: Option<usize>, paint: impl Fn(Style, &str) -> String) -> String {
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|column| {
                let cells = self
                    .rows
                    .iter()
                    .filter_map(|row| row.get(column))
                    .map(|cell| cell.text.width());
                cells
                    .chain([self.columns[column].title.width()])
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let shown = self.fitting(&widths, room);
        let mut text = String::new();
        let mut line = |cell_of: &dyn Fn(usize) -> (String, Style)| {
            let mut painted = " ".repeat(self.indent);
            for (at, &column) in shown.iter().enumerate() {
                let (cell, style) = cell_of(column);
                let padding = " ".repeat(widths[column].saturating_sub(cell.width()));
                if at > 0 {
                    painted.push_str(&" ".repeat(GAP));
                }
                match self.columns[column].align {
                    Align::Right => painted.extend([padding, paint(style, &cell)]),
                    Align::Left if at + 1 == shown.len() => painted.push_str(&paint(style, &cell)),
                    Align::Left => painted.extend([paint(style, &cell), padding]),
                }
            }
            text.push_str(painted.trim_end());
            text.push('\n');
        };
        if self.columns.iter().any(|column| !column.title.is_empty()) {
            line(&|column| (self.columns[column].title.to_owned(), DIM));
        }
        for row in &self.rows {
            line(&|column| {
                row.get(column)
                    .map(|cell| (cell.text.clone(), cell.style))
                    .unwrap_or_default()
            });
        }
        if shown.len() < self.columns.len() {
            let left_out = (0..self.columns.len()).filter(|column| !shown.contains(column));
            let titles: Vec<&str> = left_out.map(|column| self.columns[column].title).collect();
            text += &paint(
                DIM,
                &format!(
                    "(left out for want of room: {}; --json has all)",
                    titles.join(", ")
                ),
            );
            text.push('\n');
        }
        text
    }

    /// The columns there is room for.
    fn fitting(&self, widths: &[usize], room: Option<usize>) -> Vec<usize> {
        let mut shown: Vec<usize> = (0..self.columns.len()).collect();
        let Some(room) = room else { return shown };
        let width = |shown: &[usize]| {
            self.indent
                + shown
                    .iter()
                    .map(|&column| widths[column] + GAP)
                    .sum::<usize>()
        };
        while width(&shown) > room + GAP {
            let Some(at) = shown
                .iter()
                .rposition(|&column| self.columns[column].optional)
            else {
                break;
            };
            shown.remove(at);
        }
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_have_a_few_digits() {
        assert_eq!(
            [0.0414, 1.239, 12.34, 123.4].map(milliseconds),
            ["0.041 ms", "1.24 ms", "12.3 ms", "123 ms"]
        );
        assert_eq!(
            [0, 59, 60, 3599, 3600, 86_400, 90_000].map(duration),
            ["0s", "59s", "1m00s", "59m59s", "1h00m", "1d00h", "1d01h"]
        );
        assert_eq!(
            [0, 1023, 1024, 1536, 1 << 20, u64::MAX].map(bytes),
            ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "16.0 EiB"]
        );
        assert_eq!(bytes((1 << 20) - 1), "1.0 MiB");
        assert_eq!(
            [0, 999, 1000, 1_234_567].map(count),
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!(
            [0.0, 0.0001, 0.004, 0.25, 1.0].map(percent),
            ["0%", "<0.1%", "0.4%", "25%", "100%"]
        );
        assert_eq!(
            [0.064, 2.5, 940.0, 10_000.0].map(capacity),
            ["64 kbit/s", "2.5 Mbit/s", "940 Mbit/s", "10.0 Gbit/s"]
        );
    }

    #[test]
    fn columns_align_by_display_width() {
        let mut table = Table::new(&["NAME", ">COST", "STATE"]);
        table.row(["a".into(), "5".into(), Cell::new("up", GOOD)]);
        table.row(["zürich-接続".into(), "1200".into(), "".into()]);
        let text = table.to_text(None, |_, text| text.to_owned());
        assert_eq!(
            text,
            "NAME         COST  STATE\na               5  up\nzürich-接続  1200  -\n"
        );
    }

    #[test]
    fn a_narrow_terminal_leaves_columns_out_and_says_which() {
        let mut table = Table::new(&["NAME", "?>SLOT", "STATE", "?REMOTE"]);
        table.row(["a".into(), "5".into(), "up".into(), "192.0.2.1:7117".into()]);
        let text = |room| table.to_text(Some(room), |_, text| text.to_owned());
        assert_eq!(
            text(33),
            "NAME  SLOT  STATE  REMOTE\na        5  up     192.0.2.1:7117\n"
        );
        assert_eq!(
            text(32),
            "NAME  SLOT  STATE\na        5  up\n(left out for want of room: REMOTE; --json has all)\n"
        );
        assert_eq!(
            text(5),
            "NAME  STATE\na     up\n(left out for want of room: SLOT, REMOTE; --json has all)\n"
        );
    }

    #[test]
    fn colours_do_not_count_as_width() {
        let mut table = Table::bare(&[Align::Left, Align::Left]).indented(2);
        table.row([Cell::new("up", GOOD), "x".into()]);
        table.row([Cell::new("broken", BAD), "y".into()]);
        let text = table.to_text(None, |style, text| format!("{style}{text}{style:#}"));
        let plain = text
            .replace("\x1b[32m", "")
            .replace("\x1b[31m", "")
            .replace("\x1b[0m", "");
        assert_eq!(plain, "  up      x\n  broken  y\n");
        assert!(text.contains("\x1b[32mup\x1b[0m    "));
    }

    #[test]
    fn names_cannot_steer_the_terminal() {
        assert_eq!(clean("gw\x1b[2J\u{202e}"), "gw\\u{1b}[2J\\u{202e}");
        assert_eq!(clean("zürich"), "zürich");
    }
}
