"""The names by which columns of bars are known."""

# In other languages, as `columns.plain` writes them: without accents.
LANGUAGES: dict[str, dict[str, str]] = {
    "German": {
        "moment": "zeitstempel datumzeit datumuhrzeit",
        "date": "datum",
        "clock": "uhrzeit zeit",
        "open": "eroffnung eroffnungskurs eroffn erster",
        "high": "hoch hochst hochstkurs tageshoch",
        "low": "tief tiefst tiefstkurs tagestief",
        "close": "schluss schlusskurs zuletzt letzter",
        "volume": "volumen stuck stucke",
    },
    "French": {
        "moment": "horodatage dateheure",
        "clock": "heure",
        "open": "ouverture ouv",
        "high": "haut plushaut",
        "low": "bas plusbas",
        "close": "cloture dernier",
    },
    "Spanish": {
        "moment": "fechahora fechayhora",
        "date": "fecha",
        "clock": "hora",
        "open": "apertura",
        "high": "maximo alto",
        "low": "minimo bajo",
        "close": "cierre ultimo",
        "volume": "volumen",
    },
    "Italian": {
        "moment": "dataora",
        "date": "data",
        "clock": "ora orario",
        "open": "apertura",
        "high": "massimo",
        "low": "minimo",
        "close": "chiusura ultimo",
    },
    "Portuguese": {
        "moment": "datahora dataehora",
        "date": "data",
        "clock": "hora",
        "open": "abertura",
        "high": "maxima maximo",
        "low": "minima minimo",
        "close": "fechamento fecho ultimo",
    },
    "Polish": {
        "date": "data",
        "clock": "czas godzina",
        "open": "otwarcie",
        "high": "najwyzszy najwyzej",
        "low": "najnizszy najnizej",
        "close": "zamkniecie",
        "volume": "wolumen",
    },
}


def _in_other_languages(role: str) -> tuple[str, ...]:
    found = [name for names in LANGUAGES.values() for name in names.get(role, "").split()]
    return tuple(dict.fromkeys(found))


# In order of preference.
TIME_NAMES = (
    "tsevent",
    "timestamp",
    "datetime",
    "opentime",
    "windowstart",
    "time",
    "gmttime",
    "localtime",
    "date",
    "datetimeutc",
    "timestamputc",
    "timeutc",
    "dateutc",
    "utctime",
    "utc",
    "unix",
    "unixtime",
    "unixtimestamp",
    "epoch",
    "starttime",
    "start",
    "bartime",
    "begin",
    "dt",
    "t",
    *_in_other_languages("moment"),
    *_in_other_languages("date"),
    *_in_other_languages("clock"),
)
DATE_NAMES = (
    "date",
    "dtyyyymmdd",
    "day",
    "tradedate",
    "dateutc",
    "gmtdate",
    "localdate",
    *_in_other_languages("date"),
)
CLOCK_NAMES = (
    "time",
    "clock",
    "timeofday",
    "timeutc",
    "hhmmss",
    *_in_other_languages("clock"),
)
ROLE_NAMES: dict[str, tuple[str, ...]] = {
    role: (*names.split(), *_in_other_languages(role))
    for role, names in {
        "open": "open o openprice openbid bidopen bido mido first",
        "high": "high h highprice highbid bidhigh bidh midh max",
        "low": "low l lowprice lowbid bidlow bidl midl min",
        "close": "close c closeprice last latest closebid bidclose bidc midc lastprice price",
        "volume": "volume tickvol tickvolume vol v totalvolume tradedvolume",
    }.items()
}
ADDED_UP = (
    "up",
    "down",
)  # TradeStation's volume of trades above and below the price before
SYMBOL_NAMES = (
    "symbol",
    "ticker",
    "contract",
    "rawsymbol",
    "sym",
    "instrument",
    "pair",
    "localsymbol",
    "contractname",
    "instrumentname",
    "ric",
    "#ric",
    "code",
    "expiry",
    "expiration",
    "expirationdate",
    "conid",
    "instrumentid",
)
UTC_NAMES = ("gmttime", "utctime", "utc", "gmtdate")
