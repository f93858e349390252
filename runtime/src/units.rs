//! Numbers, durations and sizes on the command line.

use std::{
    fmt::Display,
    ops::{Bound, RangeBounds, RangeInclusive},
    str::FromStr,
    time::Duration,
};

/// Returns a parser of whole numbers within a range, for clap. `what` completes "expected …" in messages: `a number of
/// images`.
pub fn whole_in<T>(
    what: &'static str,
    range: impl RangeBounds<T> + Clone + Send + Sync + 'static,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static
where
    T: FromStr + PartialOrd + Display,
{
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| format!("expected {what}{}", bounds(&range)))
    }
}

/// Returns a parser of finite numbers within a range, for clap. `what` completes "expected …" in messages: `a factor`.
pub fn number_in(
    what: &'static str,
    range: impl RangeBounds<f64> + Clone + Send + Sync + 'static,
) -> impl Fn(&str) -> Result<f64, String> + Clone + Send + Sync + 'static {
    move |text| {
        let number = text.parse().ok().filter(|number: &f64| number.is_finite() && range.contains(number));
        number.ok_or_else(|| format!("expected {what}{}", bounds(&range)))
    }
}

/// Formats the bounds of a range: ` from 1 to 8`, `, at least 1`, ` above 0`.
fn bounds<T: Display>(range: &impl RangeBounds<T>) -> String {
    match (range.start_bound(), range.end_bound()) {
        (Bound::Included(start), Bound::Included(end)) => format!(" from {start} to {end}"),
        (Bound::Included(start), Bound::Excluded(end)) => format!(" from {start} to below {end}"),
        (Bound::Included(start), Bound::Unbounded) => format!(", at least {start}"),
        (Bound::Excluded(start), Bound::Unbounded) => format!(" above {start}"),
        (Bound::Excluded(start), Bound::Included(end)) => format!(" above {start}, at most {end}"),
        (Bound::Excluded(start), Bound::Excluded(end)) => format!(" above {start} and below {end}"),
        (Bound::Unbounded, Bound::Included(end)) => format!(", at most {end}"),
        (Bound::Unbounded, Bound::Excluded(end)) => format!(" below {end}"),
        (Bound::Unbounded, Bound::Unbounded) => String::new(),
    }
}

/// Formats a size in bytes: `512 B`, `1.50 MiB`.
pub fn human_bytes(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

/// Parses a size in bytes: `1000`, `64kB`, `1.5GB`, `512MiB`.
///
/// # Errors
/// Fails if there is no number, an unknown unit, or less than a byte.
pub fn byte_size(text: &str) -> Result<u64, String> {
    size(text, 1)
}

/// Returns a parser of sizes within a range, for clap. A number without a unit counts in `bare` bytes.
pub fn byte_size_in(
    bare: u64,
    range: RangeInclusive<u64>,
) -> impl Fn(&str) -> Result<u64, String> + Clone + Send + Sync + 'static {
    move |text| {
        let bytes = size(text, bare)?;
        match range.contains(&bytes) {
            true => Ok(bytes),
            false => Err(format!("expected {} to {}", human_bytes(*range.start()), human_bytes(*range.end()))),
        }
    }
}

fn size(text: &str, bare: u64) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" => bare,
        "b" => 1,
        "k" | "kb" => 1000,
        "m" | "mb" => 1000 * 1000,
        "g" | "gb" => 1000 * 1000 * 1000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        _ => return Err(format!("unknown unit `{unit}`; expected kB, MB, GB, KiB, MiB or GiB")),
    };
    let number: f64 = number.parse().map_err(|_| format!("`{number}` is not a number"))?;
    let bytes = number * factor as f64;
    if bytes < 1.0 { Err("the size is less than a byte".into()) } else { Ok(bytes as u64) }
}

/// Returns a parser of durations within a range, for clap: `500ms`, `30s`, `5min`, `1h 30min`. A number without a unit
/// counts in `bare`.
pub fn duration_in(
    bare: Duration,
    range: RangeInclusive<Duration>,
) -> impl Fn(&str) -> Result<Duration, String> + Clone + Send + Sync + 'static {
    move |text| {
        let human = humantime::format_duration;
        let out_of_range = || format!("expected {} to {}", human(*range.start()), human(*range.end()));
        let duration = match text.parse::<f64>() {
            Ok(number) => {
                let seconds = number * bare.as_secs_f64();
                Duration::try_from_secs_f64(seconds).map_err(|_| out_of_range())?
            }
            Err(_) => humantime::parse_duration(text)
                .map_err(|error| format!("{error}; expected a number with a unit, such as 500ms, 30s or 5min"))?,
        };
        if range.contains(&duration) { Ok(duration) } else { Err(out_of_range()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_say_what_they_count_and_their_range() {
        let images = whole_in("a number of images", 1_u32..=4096);
        assert_eq!(images("4096"), Ok(4096));
        for wrong in ["", "many", "0", "4097", "1.5", "-1", "99999999999999999999"] {
            assert_eq!(images(wrong).unwrap_err(), "expected a number of images from 1 to 4096");
        }
        assert_eq!(whole_in("a number", 1_u64..)("x").unwrap_err(), "expected a number, at least 1");
        assert_eq!(whole_in::<i64>("a number", ..)("x").unwrap_err(), "expected a number");
        let rate = number_in("a rate", (Bound::Excluded(0.0), Bound::Unbounded));
        assert_eq!(rate("1e-3"), Ok(1e-3));
        for wrong in ["0", "-1", "inf", "NaN", "fast"] {
            assert_eq!(rate(wrong).unwrap_err(), "expected a rate above 0");
        }
    }

    #[test]
    fn byte_sizes_have_units() {
        assert_eq!(byte_size("1000"), Ok(1000));
        assert_eq!(byte_size("1.5GB"), Ok(1_500_000_000));
        assert_eq!(byte_size("512 MiB"), Ok(512 << 20));
        assert!(byte_size("5 apples").unwrap_err().contains("apples"));
        assert!(byte_size("GB").unwrap_err().contains("not a number"));
        assert!(byte_size("0").is_err());
        let body = byte_size_in(1 << 20, 1 << 20..=1 << 30);
        assert_eq!((body("20"), body("20MiB")), (Ok(20 << 20), Ok(20 << 20)));
        assert!(body("2GiB").unwrap_err().contains("1.00 MiB to 1.00 GiB"));
        assert!(body("99999999999999999999999").is_err());
    }

    #[test]
    fn durations_have_units_and_a_range() {
        let ms = Duration::from_millis;
        let parse = duration_in(ms(1), Duration::ZERO..=Duration::from_secs(60));
        assert_eq!((parse("2"), parse("2ms"), parse("1.5")), (Ok(ms(2)), Ok(ms(2)), Ok(Duration::from_micros(1500))));
        assert_eq!((parse("0"), parse("1s 5ms"), parse("1min")), (Ok(ms(0)), Ok(ms(1005)), Ok(ms(60_000))));
        for wrong in ["18446744073709551615", "-1", "inf", "nan", "2min", "1e300"] {
            assert!(parse(wrong).unwrap_err().contains("expected"), "{wrong}");
        }
        assert!(parse("2 apples").unwrap_err().contains("such as 500ms"));
    }
}
