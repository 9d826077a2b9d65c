"""The colours of a report, in its pictures and in its page."""

# Okabe and Ito's palette: the colour-blind can tell them apart.
INK = "#1f2933"
MUTED = "#616e7c"
RULE = "#d9dee3"
BLUE = "#0072b2"
VERMILION = "#d55e00"
GREEN = "#009e73"
PURPLE = "#cc79a7"
ORANGE = "#e69f00"

CSS = f"""
*{{box-sizing:border-box}}
body{{margin:0;background:#f4f6f8;color:{INK};
 font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}}
main{{max-width:1140px;margin:0 auto;padding:28px 20px 60px}}
h1{{font-size:27px;margin:0 0 10px;letter-spacing:-.01em}}
h2{{font-size:19px;margin:0 0 10px}}
h3{{font-size:15px;margin:20px 0 10px}}
p{{margin:0 0 12px;max-width:100ch;color:#3e4c59}}
section,header{{background:#fff;border:1px solid {RULE};border-radius:8px;padding:22px 24px;
 margin:0 0 18px}}
.note{{background:#fff6e0;border-left:4px solid {ORANGE};padding:9px 14px;color:{INK};
 max-width:none}}
dl{{display:grid;grid-template-columns:repeat(auto-fill,minmax(330px,1fr));gap:10px 28px;margin:0}}
dt{{font-size:12px;color:{MUTED}}}
dd{{margin:0;overflow-wrap:anywhere;font-size:14px}}
.cards{{display:grid;grid-template-columns:repeat(4,1fr);gap:14px;margin:0 0 18px}}
.card{{background:#fff;border:1px solid {RULE};border-radius:8px;padding:14px 18px;font-size:13px;
 color:{MUTED}}}
.card .name{{color:{INK};font-weight:600;line-height:1.3;min-height:2.6em}}
.card .big{{font-size:32px;line-height:1.25;font-weight:650;color:{BLUE}}}
table{{border-collapse:collapse;width:100%;font-size:13.5px;font-variant-numeric:tabular-nums}}
th,td{{padding:5px 9px;border-bottom:1px solid #e9edf0;text-align:right;vertical-align:top}}
th:first-child{{text-align:left}}
thead th{{color:{MUTED};font-weight:600;font-size:12.5px;vertical-align:bottom;
 border-bottom:1.5px solid {MUTED}}}
tbody th{{font-weight:400;overflow-wrap:anywhere}}
td.value{{font-weight:650}}
td.interval{{white-space:nowrap;color:{MUTED}}}
tr.group th{{padding-top:14px;font-weight:700;border-bottom:1px solid {RULE}}}
.pass{{color:#00694e;font-weight:600;white-space:nowrap}}
.fail{{color:#b34700;font-weight:700;white-space:nowrap}}
table.confusion caption{{caption-side:top;text-align:left;color:{MUTED};font-size:13px;
 padding-bottom:8px}}
table.confusion td{{text-align:center;padding:16px 10px;font-size:13px;border:3px solid #fff}}
table.confusion b{{font-size:20px}}
table.confusion thead th{{text-align:center;border:0}}
table.confusion tbody th{{vertical-align:middle;border:0}}
figure{{margin:0 0 16px}}
figcaption{{font-size:13.5px;color:{INK};margin:0 0 6px}}
img{{display:block;width:100%;height:auto}}
.pair{{display:grid;grid-template-columns:1fr 1fr;gap:34px;align-items:start}}
.grid{{display:grid;grid-template-columns:repeat(2,1fr);gap:14px 20px}}
.window figcaption{{margin:2px 0 0;font-size:12.5px;line-height:1.4;overflow-wrap:anywhere}}
.window figcaption b{{color:{INK}}}
.legend span{{display:inline-block;width:22px;height:13px;vertical-align:-2px;margin:0 4px 0 14px}}
.legend span:first-child{{margin-left:0}}
.true-key{{background:rgba(0,114,178,.25)}}
.predicted-key{{border:2px solid {VERMILION};border-bottom:0}}
@media(max-width:820px){{.cards,.grid,.pair{{grid-template-columns:1fr}}
 table{{display:block;overflow-x:auto}}}}
"""
