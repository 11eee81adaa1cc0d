//! The live view as lines of a given size. Pure; nothing here fails, however narrow or low it gets: rows and columns that say less
//! than others are left out first.

use super::{Live, Numbers, Point, Second};
use crate::measure::{Latency, grouped, micros, seconds};
use ratatui::{
    buffer::Buffer,
    layout::{Constraint, Layout, Rect},
    style::{Color, Style, Stylize},
    text::{Line, Span},
    widgets::{LineGauge, Sparkline, SparklineBar, Widget},
};

/// Largest size that is used; wider terminals are left empty at the right.
const MAX_WIDTH: u16 = 160;
const MAX_HEIGHT: u16 = 20;
/// Width of the names at the left.
const NAMES: u16 = 7;
/// Width of what stands at the right of the curves, and of the view that has room for it.
const SCALES: u16 = 17;
const MIN_WIDTH_WITH_SCALES: u16 = 60;

/// A column of the table.
struct Column {
    name: &'static str,
    width: u16,
    /// Where it stands among those that there is room for.
    place: u8,
    text: fn(&Numbers) -> Option<String>,
}

/// By importance: the last are left out first where there is no room.
const COLUMNS: [Column; 8] = [
    Column { name: "ops/s", width: 12, place: 0, text: |n| Some(grouped(n.ops_per_s.round() as u64)) },
    Column { name: "p50", width: 10, place: 1, text: |n| latency(n, |l| l.p50) },
    Column { name: "p99", width: 10, place: 3, text: |n| latency(n, |l| l.p99) },
    Column { name: "errors", width: 10, place: 6, text: |n| Some(grouped(n.errors)) },
    Column { name: "p99.9", width: 10, place: 4, text: |n| latency(n, |l| l.p999) },
    Column { name: "max", width: 10, place: 5, text: |n| latency(n, |l| l.max) },
    Column { name: "p90", width: 10, place: 2, text: |n| latency(n, |l| l.p90) },
    Column { name: "misses", width: 12, place: 7, text: |n| Some(grouped(n.misses)) },
];

/// A row of the view.
enum Row<'a> {
    Text(Line<'a>),
    Progress { left: Line<'a>, done: f64, right: Line<'a> },
    Curve(Curve),
    Marks,
}

#[derive(Clone, Copy)]
enum Curve {
    Rate,
    P99,
}

/// A row with how many lines it takes, and how early it is left out where there is no room: the highest first.
struct Placed<'a> {
    row: Row<'a>,
    height: u16,
    dispensable: u8,
}

impl Live {
    /// The view in at most so many columns and lines; as many lines as there is something to say.
    pub(in crate::output) fn draw(&self, width: u16, height: u16) -> Buffer {
        let (width, height) = (width.min(MAX_WIDTH), height.min(MAX_HEIGHT));
        let mut rows = self.rows(width);
        let tall = |rows: &[Placed<'_>]| rows.iter().map(|row| row.height).sum::<u16>();
        while tall(&rows) > height {
            let (index, _) =
                rows.iter().enumerate().max_by_key(|(_, r)| r.dispensable).expect("rows that are too many");
            rows.remove(index);
        }
        // What room there is makes the curves finer.
        let mut room = height.saturating_sub(tall(&rows));
        for row in rows.iter_mut().filter(|row| matches!(row.row, Row::Curve(_))) {
            if room > 0 {
                row.height += 1;
                room -= 1;
            }
        }
        let mut buffer = Buffer::empty(Rect::new(0, 0, width, tall(&rows)));
        let mut y = 0;
        for Placed { row, height, .. } in rows {
            let area = Rect::new(0, y, width, height);
            y += height;
            match row {
                Row::Text(line) => line.render(area, &mut buffer),
                Row::Progress { left, done, right } => progress(&left, done, &right, area, &mut buffer),
                Row::Curve(curve) => self.curve(curve, area, &mut buffer),
                Row::Marks => self.marks(area, &mut buffer),
            }
        }
        buffer
    }

    /// All rows, from top to bottom.
    fn rows(&self, width: u16) -> Vec<Placed<'_>> {
        let mut rows = Vec::new();
        let mut add = |dispensable, row| rows.push(Placed { row, height: 1, dispensable });
        add(6, Row::Text(Line::from(self.title.as_str().bold())));
        let Some(second) = &self.second else {
            add(0, Row::Text(Line::from(vec![self.phase.bold(), "  ".into(), self.what.as_str().into()])));
            return rows;
        };
        add(0, self.progress(second));
        let columns = columns(width);
        add(4, Row::Text(head(&columns)));
        add(1, Row::Text(numbers(&second.now, &columns).bold()));
        if second.kinds.len() > 1 {
            second.kinds.iter().for_each(|kind| add(9, Row::Text(numbers(kind, &columns))));
        }
        add(2, Row::Text(numbers(&second.so_far, &columns)));
        add(3, Row::Text(errors(second)));
        add(7, Row::Text(load(second)));
        add(5, Row::Curve(Curve::Rate));
        add(8, Row::Curve(Curve::P99));
        if self.points.iter().any(|point| point.errors || point.event) {
            add(10, Row::Marks);
        }
        if let Some(event) = &self.event {
            let ago = seconds(second.elapsed.saturating_sub(event.at));
            let what = Span::styled(format!("! {ago} ago: {}", event.what), Color::Magenta);
            add(7, Row::Text(Line::from(what)));
        }
        rows
    }

    fn progress(&self, second: &Second) -> Row<'_> {
        let passed = seconds(second.elapsed);
        let done = second.done.filter(|done| done.is_finite()).map(|done| done.clamp(0.0, 1.0));
        let Some(done) = done else {
            return Row::Text(Line::from(vec![
                self.phase.bold(),
                format!("  {passed}  ").into(),
                self.what.as_str().dim(),
            ]));
        };
        // As long as nothing is done, nobody knows.
        let left = second.elapsed.as_secs_f64() * (1.0 - done) / done;
        let left = std::time::Duration::try_from_secs_f64(left.round())
            .map_or_else(|_| String::new(), |left| format!(", {} left", seconds(left)));
        Row::Progress {
            left: Line::from(vec![self.phase.bold(), format!(" {:3.0} % ", done * 100.0).into()]),
            done,
            right: Line::from(format!(" {passed}{left}")),
        }
    }

    /// Name, curve and scale of the last seconds.
    fn curve(&self, curve: Curve, area: Rect, buffer: &mut Buffer) {
        let (name, curve_area, scale) = beside_curve(area);
        let points = self.shown(curve_area.width);
        let value = |point: &Point| match curve {
            Curve::Rate => Some(point.ops_per_s),
            Curve::P99 => point.p99_us,
        };
        let max = points.clone().filter_map(value).max().unwrap_or(0);
        // What is not nothing is seen, however high the highest is: an eighth of a line is the least that can be drawn.
        let least = max.div_ceil(8 * u64::from(area.height).max(1));
        let bar = |point: &Point| value(point).map(|value| if value == 0 { 0 } else { value.max(least) });
        let (title, highest) = match curve {
            Curve::Rate => ("ops/s", grouped(max)),
            Curve::P99 => ("p99", micros(max)),
        };
        Line::from(title.dim()).render(name, buffer);
        Line::from(format!(" max {highest}").dim()).render(scale, buffer);
        let bars: Vec<_> = points.map(|point| SparklineBar::from(bar(point)).style(colour(point))).collect();
        // A curve of nothing but zeros is at the bottom, not at the top.
        Sparkline::default().data(bars).max(max.max(1)).render(curve_area, buffer);
    }

    /// What happened in which second, below the curves; readable without colours.
    fn marks(&self, area: Rect, buffer: &mut Buffer) {
        let (_, curve_area, scale) = beside_curve(area);
        let marks = self.shown(curve_area.width).map(|point| {
            let mark = match point {
                Point { event: true, .. } => "!",
                Point { errors: true, .. } => "x",
                _ => " ",
            };
            Span::styled(mark, colour(point))
        });
        Line::from_iter(marks).render(curve_area, buffer);
        Line::from(" x errors ! event".dim()).render(scale, buffer);
    }

    /// The newest seconds that there is room for.
    fn shown(&self, width: u16) -> impl Iterator<Item = &Point> + Clone {
        self.points.iter().skip(self.points.len().saturating_sub(usize::from(width)))
    }
}

fn colour(point: &Point) -> Style {
    Style::new().fg(match point {
        Point { event: true, .. } => Color::Magenta,
        Point { errors: true, .. } => Color::Red,
        _ => Color::Cyan,
    })
}

/// Where the name, the curve and its scale stand.
fn beside_curve(area: Rect) -> (Rect, Rect, Rect) {
    let scale = if area.width < MIN_WIDTH_WITH_SCALES { 0 } else { SCALES };
    let [name, curve, scale] =
        Layout::horizontal([Constraint::Length(NAMES), Constraint::Min(0), Constraint::Length(scale)]).areas(area);
    (name, curve, scale)
}

fn progress(left: &Line<'_>, done: f64, right: &Line<'_>, area: Rect, buffer: &mut Buffer) {
    let width = |line: &Line<'_>| Constraint::Length(u16::try_from(line.width()).unwrap_or(u16::MAX));
    let areas = Layout::horizontal([width(left), Constraint::Min(0), width(right)]).areas(area);
    let [left_area, gauge, right_area] = areas;
    left.render(left_area, buffer);
    if gauge.width > 2 {
        LineGauge::default()
            .ratio(done)
            .label("")
            .filled_symbol("━")
            .unfilled_symbol("─")
            .filled_style(Color::Green)
            .unfilled_style(Style::new().dim())
            .render(gauge, buffer);
    }
    right.render(right_area, buffer);
}

/// The columns that there is room for, from left to right.
fn columns(width: u16) -> Vec<&'static Column> {
    let mut room = width.saturating_sub(NAMES);
    let mut columns = Vec::new();
    for column in &COLUMNS {
        if room < column.width {
            break;
        }
        room -= column.width;
        columns.push(column);
    }
    columns.sort_by_key(|column| column.place);
    columns
}

fn head(columns: &[&Column]) -> Line<'static> {
    let mut text = " ".repeat(NAMES.into());
    for column in columns {
        text += &format!("{:>1$}", column.name, usize::from(column.width));
    }
    Line::from(text.dim())
}

fn numbers(numbers: &Numbers, columns: &[&Column]) -> Line<'static> {
    let mut spans = vec![Span::raw(format!("{:<1$}", numbers.name, usize::from(NAMES)))];
    for column in columns {
        let text = (column.text)(numbers).unwrap_or_else(|| "--".to_owned());
        let span = Span::raw(format!("{text:>0$}", usize::from(column.width)));
        let bad = column.name == "errors" && numbers.errors > 0;
        spans.push(if bad { span.red() } else { span });
    }
    Line::from(spans)
}

fn latency(numbers: &Numbers, of: fn(&Latency) -> u64) -> Option<String> {
    numbers.latency.as_ref().map(|latency| micros(of(latency)))
}

fn errors(second: &Second) -> Line<'_> {
    if second.errors.is_empty() {
        return Line::from("no errors".dim());
    }
    let mut text = format!("{} errors: ", grouped(second.so_far.errors));
    for (index, (code, count)) in second.errors.iter().enumerate() {
        let between = if index > 0 { " · " } else { "" };
        text += &format!("{between}{code} {}", grouped(*count));
    }
    if second.error_codes > second.errors.len() {
        text += &format!(" · {} more", second.error_codes - second.errors.len());
    }
    Line::from(text.red())
}

fn load(second: &Second) -> Line<'static> {
    let mut spans = Vec::new();
    if let Some(asked) = second.asked_per_s {
        spans.push(Span::raw(format!("asked {}/s · ", grouped(asked.round() as u64))));
    }
    spans.push(Span::raw(format!("in flight {} · waiting {}", grouped(second.in_flight), grouped(second.waiting))));
    // Only an open loop is late or drops anything.
    if second.asked_per_s.is_some() || second.late > 0 || second.dropped > 0 {
        let by_generator = match second.late_by_generator {
            0 => String::new(),
            n => format!(" ({} by kvbench itself)", grouped(n)),
        };
        let late = Span::raw(format!(" · late {}{by_generator}", grouped(second.late)));
        let dropped = Span::raw(format!(" · dropped {}", grouped(second.dropped)));
        spans.push(if second.late_by_generator > 0 { late.yellow() } else { late });
        spans.push(if second.dropped > 0 { dropped.red() } else { dropped });
    }
    Line::from(spans)
}

#[cfg(test)]
mod tests {
    use super::{
        super::super::samples::{Sample, Story},
        *,
    };
    use ratatui::buffer::Cell;

    /// The lines without their colours, as a terminal shows them.
    fn text(buffer: &Buffer) -> Vec<String> {
        let row = |row: &[Cell]| {
            let (mut text, mut x) = (String::new(), 0);
            while let Some(cell) = row.get(x) {
                text += cell.symbol();
                // A wide character covers the cells after it.
                x += Span::raw(cell.symbol()).width().max(1);
            }
            text.trim_end().to_owned()
        };
        buffer.content().chunks(usize::from(buffer.area().width).max(1)).map(row).collect()
    }

    fn view(samples: &[Sample]) -> Live {
        let mut live = Live::new("kvbench run: put of 64 bytes, 50 x 16, kv://127.0.0.1:5001".to_owned());
        live.begin("run", "10 seconds".to_owned());
        samples.iter().for_each(|sample| live.interval(&sample.interval()));
        live
    }

    #[test]
    fn nothing_fails_whatever_the_size_and_whatever_is_shown() {
        for samples in [
            vec![],
            vec![Sample::idle()],
            vec![Sample::busy(), Sample::idle()],
            vec![Sample::all_kinds()],
            vec![Sample::huge()],
            (0..200).map(|_| Sample::busy()).collect(),
        ] {
            let live = view(&samples);
            for width in (0..=60).step_by(3).chain([1, 79, 80, 100, 200, u16::MAX]) {
                for height in (0..=22).chain([u16::MAX]) {
                    let area = *live.draw(width, height).area();
                    assert!(area.width <= width && area.height <= height.min(MAX_HEIGHT), "{width}x{height}: {area}");
                }
            }
        }
    }

    #[test]
    fn what_is_seen_on_100_columns() {
        let expected = "\
kvbench run: put of 64 bytes, 50 x 16, kv://127.0.0.1:5001
run  67 %  ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━───────────────────────── 40 s, 20 s left
              ops/s       p50       p90       p99     p99.9       max    errors      misses
now           1,010    299 us    397 us   2.52 ms   5.58 ms   5.73 ms         0           0
get             808    299 us    398 us    419 us   5.73 ms   5.73 ms         0           0
put             202    300 us    395 us   2.52 ms   5.11 ms   5.11 ms         0           0
so far        1,019    313 us   4.56 ms  21.07 ms  87.61 ms 319.23 ms     2,440           0
2,440 errors: not_leader 1,220 · unreachable 1,220
asked 1,050/s · in flight 12 · waiting 0 · late 600 · dropped 0
ops/s  ▄▄▄▄▄▄▄▄▅▅▅▅▄▄▄▄▄▄▄▄▅▅▅▅▅▄▄▄▄  ███▅▅▅▅▄▄                                     max 1,300
       █████████████████████████████▄ █████████
p99    ▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▂ █▅▃▁▁▁▁▁▁                                     max 140.41 ms
                                    !x                                              x errors ! event
! 10 s ago: killed shard0-leader";
        assert_eq!(text(&minute().draw(100, 14)).join("\n"), expected);
    }

    #[test]
    fn what_is_seen_on_40_columns_and_8_lines() {
        let expected = "\
kvbench run: put of 64 bytes, 50 x 16, k
run  67 %  ━━━━━━━━───── 40 s, 20 s left
              ops/s       p50       p99
now           1,010    299 us   2.52 ms
so far        1,019    313 us  21.07 ms
2,440 errors: not_leader 1,220 · unreach
asked 1,050/s · in flight 12 · waiting 0
ops/s  ▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▂ ███▆▆▆▆▆▆";
        assert_eq!(text(&minute().draw(40, 8)).join("\n"), expected);
    }

    #[test]
    fn what_is_seen_before_anything_has_happened() {
        assert_eq!(
            text(&view(&[]).draw(200, 14)),
            ["kvbench run: put of 64 bytes, 50 x 16, kv://127.0.0.1:5001", "run  10 seconds"]
        );
        let expected = "\
kvbench run: put of 64 bytes, 50 x 16, kv://127.0.0.1:5001
run  12 s  10 seconds
              ops/s       p50       p90       p99     p99.9       max    errors
now               0        --        --        --        --        --         0
so far            0        --        --        --        --        --         0
no errors
in flight 0 · waiting 0
ops/s                                                           max 0

p99                                                             max 0 us
";
        assert_eq!(text(&view(&[Sample::idle()]).draw(80, 14)).join("\n"), expected);
    }

    /// Words from outside are cut at the edge, and nothing in them reaches the terminal as a control character.
    #[test]
    fn huge_numbers_and_strange_words_stay_in_their_places() {
        let lines = text(&view(&[Sample::huge()]).draw(80, 20));
        assert!(
            lines.iter().all(|line| Line::raw(line.as_str()).width() <= 80 && !line.contains(char::is_control)),
            "{lines:#?}"
        );
        let now = lines.iter().find(|line| line.starts_with("now")).expect("a row");
        assert_eq!(now, "now           1,009    505 us    909 us    999 us  600.31 s  600.31 s        13");
    }

    /// The colours say the same as the marks: an event, errors, neither.
    #[test]
    fn seconds_with_errors_and_events_are_marked() {
        let buffer = minute().draw(100, 14);
        for (row, second, mark, colour) in
            [(12, 29, " ", None), (12, 30, "!", Some(Color::Magenta)), (12, 31, "x", Some(Color::Red))]
        {
            let cell = &buffer[(NAMES + second - 1, row)];
            assert_eq!(cell.symbol(), mark, "second {second}");
            if let Some(colour) = colour {
                assert_eq!(cell.fg, colour, "second {second}");
            }
        }
        assert_eq!(buffer[(NAMES + 30 - 1, 10)].fg, Color::Magenta);
    }

    /// The first 40 seconds of a minute in which a leader was killed.
    fn minute() -> Live {
        let mut story = Story::default();
        view(&(0..40).map(|_| story.next()).collect::<Vec<_>>())
    }
}
