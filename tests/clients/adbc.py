"""ADBC's driver for Flight SQL against `refrain serve`: queries, parameters, tables sent, metadata, encryption, cancellation.

    python3 tests/clients/adbc.py target/release/refrain [--transcript]

Needs adbc-driver-flightsql, pyarrow, pandas and polars. Ends with the line `N passed, N failed`. With `--transcript` it tests
nothing, and prints what a person would type and read.
"""

import code
import contextlib
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
from pathlib import Path

import adbc_driver_flightsql.dbapi as flight_sql
import adbc_driver_manager
import pandas
import polars
import pyarrow
from adbc_driver_flightsql import DatabaseOptions

from harness import MonitoredServer, run_tests

# There are no transactions; each statement counts at once.
warnings.filterwarnings("ignore", message="Cannot disable autocommit")

CERTIFICATES = Path(__file__).parent.parent / "it" / "flight" / "certificates"
STORY = "select ai_complete('Write a long story about it', 'film ' || value, max_tokens => 200) from generate_series(1, 2000)"


class Server(MonitoredServer):
    """A server whose counters are read."""

    def metric(self, name):
        """Returns a counter, 0 while it is not there."""
        with urllib.request.urlopen(self.metrics_url) as page:
            for line in page.read().decode().splitlines():
                if line.startswith(name + " "):
                    return float(line.rsplit(" ", 1)[1])
        return 0.0

    def model(self, counter):
        """Returns a counter of the bundled model."""
        return self.metric('refrain_model{counter="%s",model="mini"}' % counter)

    def wait(self, condition):
        """Waits until a condition holds."""
        deadline = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < deadline, "it does not come to hold"
            time.sleep(0.01)


def connect(server, **options):
    return flight_sql.connect(server.uri, **options)


def all_rows(cursor, sql, parameters=None):
    cursor.execute(sql, parameters)
    return cursor.fetchall()


def test_three_lines(program):
    with Server(program) as server:
        with connect(server) as connection, connection.cursor() as cursor:
            assert all_rows(cursor, "select ai_sentiment('a wonderful film') as feeling") == [("positive",)]


def test_statements_take_effect_unfetched(program):
    with Server(program) as server, connect(server) as connection, connection.cursor() as cursor:
        cursor.execute("create temporary table t as select 1 as a union all select 2")
        cursor.execute("insert into t values (3)")
        cursor.execute("set refrain.seed = 4")
        assert all_rows(cursor, "select sum(a) from t") == [(6,)]
        assert all_rows(cursor, "show refrain.seed") == [("refrain.seed", "4")]


def test_parameters(program):
    with Server(program) as server, connect(server) as connection, connection.cursor() as cursor:
        assert all_rows(cursor, "select ? + 1, ?", (3, "text")) == [(4, "text")]
        assert all_rows(cursor, "select $2, $1", (3, "text")) == [("text", 3)]
        assert len(cursor.adbc_prepare("select ? + 1 as a")) == 1
        cursor.execute("create table p (a bigint, b varchar)")
        cursor.executemany("insert into p values (?, ?)", [(7, "a"), (8, None)])
        assert all_rows(cursor, "select * from p order by a") == [(7, "a"), (8, None)]


def test_tables_are_sent(program):
    table = pyarrow.table({"id": [1, 2, 3], "body": ["good", "bad", None]})
    with Server(program) as server, connect(server) as connection, connection.cursor() as cursor:
        assert cursor.adbc_ingest("mails", table, mode="create") == 3
        assert cursor.adbc_ingest("mails", table, mode="append") == 3
        try:
            cursor.adbc_ingest("mails", table, mode="create")
            raise AssertionError("a table that exists is not created")
        except adbc_driver_manager.Error as error:
            assert "already exists" in str(error), error
        assert all_rows(cursor, "select count(*) from mails") == [(6,)]
        assert cursor.adbc_ingest("mails", polars.DataFrame({"x": ["a"]}).to_arrow(), mode="replace") == 1
        assert all_rows(cursor, "select * from mails") == [("a",)]


def test_frames(program):
    with Server(program) as server, connect(server) as connection:
        sql = "select value as a, 'text' as b, [1.5, 2.5] as c from generate_series(1, 3)"
        with connection.cursor() as cursor:
            cursor.execute(sql)
            assert cursor.fetch_arrow_table().num_rows == 3
            cursor.execute(sql)
            assert list(cursor.fetch_df()["a"]) == [1, 2, 3]
        assert polars.read_database(sql, connection)["b"].to_list() == ["text"] * 3
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert len(pandas.read_sql(sql, connection)) == 3


def test_metadata(program):
    with Server(program) as server, connect(server) as connection, connection.cursor() as cursor:
        cursor.execute("create table films (id int, title varchar)")
        assert connection.adbc_get_info()["vendor_name"] == "Refrain"
        assert "TABLE" in connection.adbc_get_table_types()
        assert connection.adbc_get_table_schema("films").names == ["id", "title"]
        objects = connection.adbc_get_objects(depth="all", db_schema_filter="public").read_all().to_pylist()
        tables = objects[0]["catalog_db_schemas"][0]["db_schema_tables"]
        assert [table["table_name"] for table in tables] == ["films"]
        assert [column["column_name"] for column in tables[0]["table_columns"]] == ["id", "title"]
        assert cursor.adbc_execute_schema("select 1 as a").names == ["a"]


def test_errors(program):
    with Server(program) as server, connect(server) as connection, connection.cursor() as cursor:
        try:
            cursor.execute("select nonsense")
            raise AssertionError("nonsense is refused")
        except adbc_driver_manager.Error as error:
            assert "nonsense" in str(error), error
        assert all_rows(cursor, "select 1") == [(1,)]


def test_passwords_and_tokens(program):
    line = subprocess.run([program, "password", "ada"], input="lovelace\n", text=True, capture_output=True, check=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        passwords, tokens = Path(folder, "passwords"), Path(folder, "tokens")
        passwords.write_text(line)
        tokens.write_text("grace:0123456789abcdef\n")
        with Server(program, "--passwords", str(passwords), "--tokens", str(tokens)) as server:
            with connect(server, db_kwargs={"username": "ada", "password": "lovelace"}) as connection:
                with connection.cursor() as cursor:
                    assert all_rows(cursor, 'select distinct "user" from ai_queries()') == [("ada",)]
            header = {"adbc.flight.sql.authorization_header": "Bearer 0123456789abcdef"}
            with connect(server, db_kwargs=header) as connection, connection.cursor() as cursor:
                assert all_rows(cursor, "select 1") == [(1,)]
            try:
                with connect(server, db_kwargs={"username": "ada", "password": "byron"}) as connection:
                    connection.cursor().execute("select 1")
                raise AssertionError("a wrong password is refused")
            except adbc_driver_manager.Error as error:
                assert "wrong" in str(error), error


def certificate(name):
    return (CERTIFICATES / name).read_text()


def is_refused(server, options):
    """Whether a client with these options is kept out."""
    try:
        with connect(server, db_kwargs=options) as connection, connection.cursor() as cursor:
            all_rows(cursor, "select 1")
    except adbc_driver_manager.Error:
        return True
    return False


def test_tls(program):
    trusting = {DatabaseOptions.TLS_ROOT_CERTS.value: certificate("root.pem")}
    key = ["--tls-cert", str(CERTIFICATES / "server.pem"), "--tls-key", str(CERTIFICATES / "server.key")]
    with Server(program, *key) as server:
        assert server.uri.startswith("grpc+tls://"), server.uri
        with connect(server, db_kwargs=trusting) as connection, connection.cursor() as cursor:
            cursor.execute("set refrain.seed = 5")
            assert all_rows(cursor, "show refrain.seed") == [("refrain.seed", "5")]
        assert is_refused(server, {}), "the system does not know the root"


def test_clients_show_certificates(program):
    def options(name):
        return {
            DatabaseOptions.TLS_ROOT_CERTS.value: certificate("root.pem"),
            DatabaseOptions.MTLS_CERT_CHAIN.value: certificate(f"{name}.pem"),
            DatabaseOptions.MTLS_PRIVATE_KEY.value: certificate(f"{name}.key"),
        }

    tls = ["--tls-cert", str(CERTIFICATES / "server.pem"), "--tls-key", str(CERTIFICATES / "server.key"),
           "--tls-client-ca", str(CERTIFICATES / "root.pem")]
    with Server(program, *tls) as server:
        with connect(server, db_kwargs=options("client")) as connection, connection.cursor() as cursor:
            assert all_rows(cursor, "select 1") == [(1,)]
        assert is_refused(server, options("stranger")), "a certificate of another root"
        without = {DatabaseOptions.TLS_ROOT_CERTS.value: certificate("root.pem")}
        assert is_refused(server, without), "no certificate"


def check_stops(program, cut, **options):
    """Starts a query of 2,000 stories, cuts it in some way, and counts what the model does afterwards."""
    with Server(program) as server:
        connection = connect(server, **options)
        cursor = connection.cursor()
        cursor.execute(STORY)
        server.wait(lambda: server.model("pending") > 0)
        # Whoever reads is told by the driver, or by Arrow.
        with contextlib.suppress(adbc_driver_manager.Error, pyarrow.ArrowException, OSError):
            cut(connection, cursor)
        server.wait(lambda: server.model("pending") == 0)
        done = server.model("completed")
        assert server.model("cancelled") > 1000, "the model answered what nobody waited for"
        time.sleep(0.2)
        assert server.model("completed") == done, "calls after the cut"
        with contextlib.suppress(adbc_driver_manager.Error):
            cursor.close()
            connection.close()


def test_cancel_stops_the_model(program):
    check_stops(program, lambda connection, cursor: cursor.adbc_cancel())


def test_closing_stops_the_model(program):
    def close(connection, cursor):
        cursor.close()
        connection.close()

    check_stops(program, close)


def test_a_timeout_stops_the_model(program):
    timeout = {DatabaseOptions.TIMEOUT_FETCH.value: "5"}
    check_stops(program, lambda connection, cursor: cursor.fetchall(), db_kwargs=timeout)


def test_a_killed_client_stops_the_model(program):
    script = """
import sys, adbc_driver_flightsql.dbapi as flight_sql
cursor = flight_sql.connect(sys.argv[1]).cursor()
cursor.execute(sys.argv[2])
cursor.fetchall()
"""
    with Server(program) as server:
        client = subprocess.Popen([sys.executable, "-c", script, server.uri, STORY], stderr=subprocess.DEVNULL)
        server.wait(lambda: server.model("pending") > 0)
        client.kill()
        client.wait()
        server.wait(lambda: server.model("pending") == 0)
        assert server.model("cancelled") > 1000, "the model answered what nobody waited for"
        server.wait(lambda: server.metric("refrain_sessions") == 0)


# What a person types, by the library it is about.
SESSIONS = {
    "ADBC": """
import adbc_driver_flightsql.dbapi as flight_sql, pyarrow
connection = flight_sql.connect("grpc://127.0.0.1:31337")
cursor = connection.cursor()
reviews = pyarrow.table({"id": [1, 2], "body": ["A wonderful film.", "Dull and overlong."]})
cursor.adbc_ingest("reviews", reviews, mode="create")
cursor.execute("SELECT id, ai_sentiment(body) AS feeling FROM reviews ORDER BY id").fetchall()
cursor.execute("SELECT count(*) FROM reviews WHERE id > ?", (1,)).fetch_arrow_table()
""",
    "pandas": """
import pandas
pandas.read_sql("SELECT id, ai_filter('Is the review positive?', body) AS good FROM reviews ORDER BY id", connection)
""",
    "polars": """
import polars
polars.read_database("SELECT id, ai_classify(body, ['film', 'food']) AS topic FROM reviews ORDER BY id", connection)
""",
}


def print_transcript(program):
    """Prints the sessions and what Python answers, as its prompt would."""
    warnings.simplefilter("ignore")
    with Server(program) as server:
        console = code.InteractiveConsole()
        for title, session in SESSIONS.items():
            print(f"\n# {title}\n", flush=True)
            for line in session.strip().splitlines():
                print(f">>> {line}", flush=True)
                console.push(line.replace("grpc://127.0.0.1:31337", server.uri))
        console.push("cursor.close(); connection.close()")


if __name__ == "__main__":
    if sys.argv[2:] == ["--transcript"]:
        sys.exit(print_transcript(sys.argv[1]))
    sys.exit(run_tests(globals(), sys.argv[1]))
