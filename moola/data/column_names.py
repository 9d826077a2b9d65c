"""The names by which columns of bars are known."""

import re

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
        "volume": "stuck stucke volumen",
        "symbol": "wertpapier kurzel",
    },
    "French": {
        "moment": "horodatage dateheure",
        "clock": "heure",
        "open": "ouverture ouv",
        "high": "haut plushaut",
        "low": "bas plusbas",
        "close": "cloture dernier",
        "symbol": "titre symbole",
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
        "symbol": "activo simbolo",
    },
    "Italian": {
        "moment": "dataora",
        "date": "data",
        "clock": "ora orario",
        "open": "apertura",
        "high": "massimo",
        "low": "minimo",
        "close": "chiusura ultimo",
        "symbol": "titolo simbolo",
    },
    "Portuguese": {
        "moment": "datahora dataehora",
        "date": "data",
        "clock": "hora",
        "open": "abertura",
        "high": "maxima maximo",
        "low": "minima minimo",
        "close": "fechamento fecho ultimo",
        "symbol": "ativo papel simbolo",
    },
    "Polish": {
        "date": "data",
        "clock": "czas godzina",
        "open": "otwarcie",
        "high": "najwyzszy najwyzej",
        "low": "najnizszy najnizej",
        "close": "zamkniecie",
        "volume": "wolumen",
        "symbol": "walor",
    },
}


def _in_other_languages(role: str) -> tuple[str, ...]:
    found = [name for names in LANGUAGES.values() for name in names.get(role, "").split()]
    return tuple(dict.fromkeys(found))


# In order of preference, without the utc or gmt that they may begin or end with.
TIME_NAMES = (
    "tsevent",
    "timestamp",
    "datetime",
    "opentime",
    "windowstart",
    "time",
    "localtime",
    "date",
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
    "localdate",
    *_in_other_languages("date"),
)
CLOCK_NAMES = (
    "time",
    "clock",
    "timeofday",
    "hhmmss",
    *_in_other_languages("clock"),
)
# Prices that belong together, in order of preference; a role's further names may stand for one.
PRICE_FAMILIES = tuple(
    tuple(names.split())
    for names in (
        "open high low close",
        "o h l c",
        "openprice highprice lowprice closeprice",
        "openbid highbid lowbid closebid",
        "bidopen bidhigh bidlow bidclose",
        "bido bidh bidl bidc",
        "mido midh midl midc",
        "first max min last",
    )
)
FURTHER_NAMES = {
    "open": "",
    "high": "",
    "low": "",
    "close": "latest lastprice price",
    "volume": "volume tickvol tickvolume vol v totalvolume tradedvolume",
}
ROLE_NAMES: dict[str, tuple[str, ...]] = {
    role: (
        *(family[at] for family in PRICE_FAMILIES if at < len(family)),
        *names.split(),
        *_in_other_languages(role),
    )
    for at, (role, names) in enumerate(FURTHER_NAMES.items())
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
    *_in_other_languages("symbol"),
)
INSTRUMENT_ID = "instrumentid"  # Databento's, which may change where a symbol stays
OPENING_NAMES = (  # of the time at which a bar begins
    "tsevent",
    "opentime",
    "windowstart",
    "unix",
    "unixtime",
    "unixtimestamp",
    "starttime",
    "start",
    "begin",
)
CLOSING_NAME = re.compile("close|^end|end$")
UTC_NAME = re.compile("^(utc|gmt)|(utc|gmt)$")  # a time or a part of one: time_utc, Time [UTC]
