//! `strftime_now`: the date as templates write it.

use minijinja::{Environment, Error, ErrorKind};

/// Gives templates the date and time of so many seconds since 1970.
pub(super) fn add(environment: &mut Environment<'static>, seconds: i64) {
    environment.add_function("strftime_now", move |format: &str| formatted(seconds, format));
}

const DAYS: [&str; 7] = [
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// The moment as C's `strftime` writes it in the C locale.
fn formatted(seconds: i64, format: &str) -> Result<String, Error> {
    let days = seconds.div_euclid(86_400);
    let (second, minute, hour) = {
        let left = seconds.rem_euclid(86_400);
        (left % 60, left / 60 % 60, left / 3600)
    };
    let (year, month, day) = civil(days);
    let weekday = (days + 3).rem_euclid(7);
    let day_of_year = days - days_before(year, 1, 1) + 1;
    let name = |names: &'static [&'static str], at: i64| names.get(at as usize).copied().unwrap_or_default();
    let weekday_name = name(&DAYS, weekday);
    let month_name = name(&MONTHS, month - 1);
    let half_day = (hour + 11) % 12 + 1;
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut letter = chars.next();
        // `%-d` writes no zero in front.
        let bare = letter == Some('-');
        if bare {
            letter = chars.next();
        }
        let two = |n: i64| if bare { n.to_string() } else { format!("{n:02}") };
        let text = match letter {
            Some('a') => weekday_name[..3].to_owned(),
            Some('A') => weekday_name.to_owned(),
            Some('b' | 'h') => month_name[..3].to_owned(),
            Some('B') => month_name.to_owned(),
            Some('d') => two(day),
            Some('D') => format!("{month:02}/{day:02}/{:02}", year.rem_euclid(100)),
            Some('e') => format!("{day:>2}"),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('H') => two(hour),
            Some('I') => two(half_day),
            Some('j') if bare => day_of_year.to_string(),
            Some('j') => format!("{day_of_year:03}"),
            Some('m') => two(month),
            Some('M') => two(minute),
            Some('n') => "\n".to_owned(),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('R') => format!("{hour:02}:{minute:02}"),
            Some('s') => seconds.to_string(),
            Some('S') => two(second),
            Some('t') => "\t".to_owned(),
            Some('T' | 'X') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('u') => (weekday + 1).to_string(),
            Some('w') => ((weekday + 1) % 7).to_string(),
            Some('x') => format!("{month:02}/{day:02}/{:02}", year.rem_euclid(100)),
            Some('y') => two(year.rem_euclid(100)),
            Some('Y') => year.to_string(),
            // The time zone is not known, as in Python without one.
            Some('z' | 'Z') => String::new(),
            Some('%') => "%".to_owned(),
            other => {
                let shown: String = "%".chars().chain(other).collect();
                let message = format!("strftime_now: expected a date format, got `{shown}`");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        };
        out.push_str(&text);
    }
    Ok(out)
}

/// Year, month and day of so many days after 1 January 1970 (proleptic Gregorian calendar; eras of 400 years begin in
/// March, so that the leap day comes last).
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

/// The inverse of [`civil`].
fn days_before(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let shifted = (month + 9) % 12;
    let of_year = (153 * shifted + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::{civil, days_before, formatted};

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (days, date) in [
            (0, (1970, 1, 1)),
            (-1, (1969, 12, 31)),
            (11_016, (2000, 2, 29)),
            (19_930, (2024, 7, 26)),
        ] {
            assert_eq!(civil(days), date);
            assert_eq!(days_before(date.0, date.1, date.2), days);
        }
        for days in (-800_000..800_000).step_by(97) {
            let (year, month, day) = civil(days);
            assert_eq!(days_before(year, month, day), days);
        }
    }

    /// What Python's `datetime.strftime` gives for the same moments.
    #[test]
    fn formats_are_those_of_python() {
        let format = "%d %b %Y|%A %a %B %-d %e|%H:%M:%S %I %p|%j %y %m|%%|%Y-%m-%d %u %w|%F %T";
        assert_eq!(
            formatted(1_721_952_000, format).unwrap(),
            "26 Jul 2024|Friday Fri July 26 26|00:00:00 12 AM|208 24 07|%|2024-07-26 5 5|2024-07-26 00:00:00"
        );
        assert_eq!(
            formatted(951_868_799, format).unwrap(),
            "29 Feb 2000|Tuesday Tue February 29 29|23:59:59 11 PM|060 00 02|%|2000-02-29 2 2|2000-02-29 23:59:59"
        );
        let error = formatted(0, "%Q").unwrap_err();
        assert_eq!(error.detail(), Some("strftime_now: expected a date format, got `%Q`"));
        assert!(formatted(0, "50%").is_err());
        assert!(formatted(i64::MAX, "%Y").is_ok() && formatted(i64::MIN, "%Y").is_ok());
    }
}
