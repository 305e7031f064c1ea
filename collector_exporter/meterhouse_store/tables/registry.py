"""Namespaces, customers and what they agreed to, keys, switches and roles."""

from sqlalchemy import JSON, Column, ForeignKey, Index, Integer, String, Table, Text, UniqueConstraint

from meterhouse_store.tables.columns import Exact, UtcTime, metadata

namespaces = Table(
    "namespaces",
    metadata,
    Column("namespace", String(64), primary_key=True),
    Column("kind", String(8), nullable=False),  # test | live
    # Customers seen in usage and not registered get this plan; null leaves their usage unrated (`--strict`).
    Column("default_plan", String(64)),
    Column("default_currency", String(3), nullable=False),
    Column("created_at", UtcTime, nullable=False),
)

customers = Table(
    "customers",
    metadata,
    Column("namespace", String(64), primary_key=True),
    Column("customer_id", String(256), primary_key=True),
    Column("name", String(256), nullable=False),
    Column("currency", String(3), nullable=False),  # ISO 4217, upper case
    Column("time_zone", String(64), nullable=False),  # IANA name
    Column("email", String(320)),
    Column("stripe_customer_id", String(64)),
    Column("origin", String(16), nullable=False),  # operator | auto
    Column("registered_at", UtcTime, nullable=False),
    # What the operator calls the customer elsewhere, where the id is a pseudonym; erasing removes it.
    Column("reference", String(256)),
)

# Customers whose personal data was removed. `customer_id` is the id that the customer has now; while an erasure of
# bytes is under way, `former_id` is the one that is being replaced.
erasures = Table(
    "erasures",
    metadata,
    Column("erasure_id", String(64), primary_key=True),  # by chance
    Column("namespace", String(64), nullable=False),
    Column("customer_id", String(256), nullable=False),
    Column("former_id", String(256)),
    Column("bytes", String(8), nullable=False),  # kept | begun | erased
    Column("who", String(128), nullable=False),
    Column("why", String(500), nullable=False),
    Column("begun_at", UtcTime, nullable=False),
    Column("done_at", UtcTime),
)

contracts = Table(
    "contracts",
    metadata,
    Column("contract_id", String(64), primary_key=True),  # hash of namespace, customer, valid_from
    Column("namespace", String(64), nullable=False),
    Column("customer_id", String(256), nullable=False),
    Column("plan", String(64), nullable=False),  # '': none, the customer's contract ended
    Column("valid_from", UtcTime, nullable=False),
    Column("recorded_at", UtcTime, nullable=False),
    UniqueConstraint("namespace", "customer_id", "valid_from"),
)

# Who ended a contract, and why; the end itself is a contract without a plan.
contract_ends = Table(
    "contract_ends",
    metadata,
    Column("contract_id", String(64), ForeignKey("contracts.contract_id"), primary_key=True),
    Column("namespace", String(64), nullable=False),
    Column("customer_id", String(256), nullable=False),
    Column("who", String(128), nullable=False),
    Column("why", String(500), nullable=False),
    Column("recorded_at", UtcTime, nullable=False),
)

# What a customer agreed to beside its plan. Rows are added and ended, never changed otherwise.
customer_addons = Table(
    "customer_addons",
    metadata,
    Column("agreement_id", String(64), primary_key=True),  # hash of namespace, customer, add-on, valid_from
    Column("namespace", String(64), nullable=False),
    Column("customer_id", String(256), nullable=False),
    Column("addon", String(64), nullable=False),
    Column("quantity", Exact, nullable=False),
    Column("valid_from", UtcTime, nullable=False),
    Column("valid_until", UtcTime),  # exclusive; null: open
    Column("recorded_at", UtcTime, nullable=False),
    Index("customer_addons_by_customer", "namespace", "customer_id"),
)

price_overrides = Table(
    "price_overrides",
    metadata,
    Column("agreement_id", String(64), primary_key=True),  # hash of namespace, customer, component, valid_from
    Column("namespace", String(64), nullable=False),
    Column("customer_id", String(256), nullable=False),
    Column("component", String(64), nullable=False),
    Column("source", Text, nullable=False),  # the component, YAML as in a price book
    Column("valid_from", UtcTime, nullable=False),
    Column("valid_until", UtcTime),
    Column("recorded_at", UtcTime, nullable=False),
    Index("price_overrides_by_customer", "namespace", "customer_id"),
)

customer_discounts = Table(
    "customer_discounts",
    metadata,
    Column("agreement_id", String(64), primary_key=True),  # hash of namespace, customer, name, valid_from
    Column("namespace", String(64), nullable=False),
    Column("customer_id", String(256), nullable=False),
    Column("name", String(128), nullable=False),
    Column("percent", Exact),  # one of percent and amount
    Column("amount", Exact),  # in major units of the customer's currency
    Column("components", JSON, nullable=False),  # names; empty: all
    Column("months", Integer),  # calendar months from valid_from's on; null: until it is ended
    Column("before_minimum", Integer, nullable=False),  # 1: a minimum commitment is compared with what it leaves
    Column("valid_from", UtcTime, nullable=False),
    Column("valid_until", UtcTime),
    Column("recorded_at", UtcTime, nullable=False),
    Index("customer_discounts_by_customer", "namespace", "customer_id"),
)

customer_quantities = Table(
    "customer_quantities",
    metadata,
    Column("agreement_id", String(64), primary_key=True),  # hash of namespace, customer, name, valid_from
    Column("namespace", String(64), nullable=False),
    Column("customer_id", String(256), nullable=False),
    Column("name", String(64), nullable=False),  # seats, ...
    Column("quantity", Exact, nullable=False),  # so many from valid_from on, until the next row
    Column("valid_from", UtcTime, nullable=False),
    Column("recorded_at", UtcTime, nullable=False),
    Index("customer_quantities_by_customer", "namespace", "customer_id"),
)

credentials = Table(
    "credentials",
    metadata,
    Column("credential_id", String(32), primary_key=True),
    Column("namespace", String(64), nullable=False),
    Column("name", String(128), nullable=False),
    Column("key_sha256", String(64), nullable=False, unique=True),
    Column("customers", JSON),  # list of customer ids it may report, or read, for; null: any
    Column("valid_from", UtcTime, nullable=False),
    Column("revoked_at", UtcTime),
    Column("role", String(16), nullable=False, server_default="metering"),  # metering | pricing
)

# Keys that were replaced by a new one of the same credential, and until when they are taken all the same.
retired_keys = Table(
    "retired_keys",
    metadata,
    Column("key_sha256", String(64), primary_key=True),
    Column("credential_id", String(32), ForeignKey("credentials.credential_id"), nullable=False),
    Column("valid_until", UtcTime, nullable=False),
)

# Written by collectors, once a minute at most: a request never waits for it.
key_uses = Table(
    "key_uses",
    metadata,
    Column("credential_id", String(32), ForeignKey("credentials.credential_id"), primary_key=True),
    Column("last_used_at", UtcTime, nullable=False),
)

# Keys that sign usage grants. A credential that has any, revoked ones too, may report only for customers of a grant.
grant_keys = Table(
    "grant_keys",
    metadata,
    Column("credential_id", String(32), ForeignKey("credentials.credential_id"), primary_key=True),
    Column("key_id", String(16), primary_key=True),
    Column("key", Text, nullable=False),  # what verifies: a public key, or of an HMAC key the key itself
    Column("valid_from", UtcTime, nullable=False),
    Column("revoked_at", UtcTime),
)

# Every time somebody turned rating, sync or pausing of a namespace on or off; the latest counts. None: on.
namespace_switches = Table(
    "namespace_switches",
    metadata,
    Column("namespace", String(64), primary_key=True),
    Column("switch", String(16), primary_key=True),  # rating | sync | pausing
    Column("changed_at", UtcTime, primary_key=True),
    Column("state", String(4), nullable=False),  # on | off
    Column("who", String(128), nullable=False),
    Column("why", String(500), nullable=False),
)

# Who may change what (roles.py); the row recorded last counts. A role that nobody has is everybody's.
operator_roles = Table(
    "operator_roles",
    metadata,
    Column("namespace", String(64), primary_key=True),
    Column("role", String(16), primary_key=True),  # metering | pricing | invoicing | administration
    Column("person", String(320), primary_key=True),  # an account or an e-mail address, lower case
    Column("recorded_at", UtcTime, primary_key=True),
    Column("granted", Integer, nullable=False),  # 1 | 0
    Column("who", String(320), nullable=False),
    Column("why", String(500), nullable=False),
)
