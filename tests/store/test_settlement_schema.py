from kernel import migrate
from settlement.store.tables import metadata
def test_x(database_url):
    migrate.upgrade("settlement", database_url)
    assert migrate.differences(database_url, metadata) == []
