"""What the pinned price list says, against literals and against genai-prices itself."""

import random
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import cache

import genai_prices
import pytest
from genai_prices import types
from genai_prices.data import providers

from meterhouse_rating import catalogues, costs_catalogue, costs_snapshot
from meterhouse_rating.costs_catalogue import Asked, Catalogue, Price, Unknown

DAY = date(2026, 10, 20)


@cache
def catalogue() -> Catalogue:
    return costs_catalogue.read("list", catalogues.text())


def priced(meter: str, provider: str, model: str, **more: str) -> Price | Unknown:
    return catalogue().price(Asked(meter, provider, model, **more), DAY)


def dollars(meter: str, provider: str, model: str, **more: str) -> str:
    found = priced(meter, provider, model, **more)
    assert isinstance(found, Price)
    assert (found.per, found.currency) == (1_000_000, "USD")
    return str(found.price)


def test_the_shipped_price_list_is_what_the_package_of_its_version_says_to_the_byte() -> None:
    assert costs_snapshot.of_installed() == catalogues.text()


def test_prices_of_well_known_models_are_what_their_providers_publish() -> None:
    assert dollars("llm.tokens.input", "openai", "gpt-4o-mini-2024-07-18") == "0.15"
    assert dollars("llm.tokens.cache_read", "openai", "gpt-4o-mini") == "0.075"
    assert dollars("llm.tokens.output", "openai", "gpt-4o-mini") == "0.6"
    assert dollars("llm.tokens.reasoning", "openai", "o3") == "8"
    assert dollars("llm.tokens.output", "openai", "o3") == "8"
    assert dollars("llm.tokens.input", "anthropic", "claude-sonnet-4-5-20250929") == "3"
    assert dollars("llm.tokens.cache_read", "anthropic", "claude-sonnet-4-5") == "0.3"
    assert dollars("llm.tokens.cache_write", "anthropic", "claude-sonnet-4-5", cache_ttl="5m") == "3.75"
    assert dollars("llm.tokens.cache_write", "anthropic", "claude-sonnet-4-5", cache_ttl="1h") == "6"
    assert dollars("llm.tokens.cache_write", "anthropic", "claude-sonnet-4-5") == "3.75"


def test_audio_has_its_own_price_where_there_is_one_and_the_common_one_elsewhere() -> None:
    assert dollars("llm.tokens.input", "gcp.gemini", "gemini-2.5-flash", modality="audio") == "1"
    assert dollars("llm.tokens.input", "gcp.gemini", "gemini-2.5-flash", modality="image") == "0.3"
    assert dollars("llm.tokens.input", "gcp.gemini", "gemini-2.5-flash") == "0.3"
    assert dollars("llm.tokens.input", "openai", "gpt-4o-mini", modality="image") == "0.15"


def test_a_batch_has_half_the_price_and_a_tier_that_is_not_listed_has_none() -> None:
    assert dollars("llm.tokens.input", "anthropic", "claude-sonnet-4-5", service_tier="batch") == "1.5"
    assert dollars("llm.tokens.input", "anthropic", "claude-sonnet-4-5", service_tier="standard") == "3"
    assert priced("llm.tokens.input", "anthropic", "claude-sonnet-4-5", service_tier="priority") == Unknown(
        "service_tier_unpriced"
    )


def test_a_price_by_the_size_of_the_request_has_its_tiers() -> None:
    found = priced("llm.tokens.output", "anthropic", "claude-sonnet-4-5")
    assert isinstance(found, Price)
    assert (found.price, found.tiers) == (Decimal(15), ((200_000, Decimal("22.5")),))


def test_a_price_that_follows_the_clock_says_from_which_second_of_the_day_on() -> None:
    found = priced("llm.tokens.input", "deepseek", "deepseek-chat")
    assert isinstance(found, Price)
    # Off-peak from 16:30 to 00:30 UTC.
    assert found.clock == ((0, Decimal("0.135")), (1800, Decimal("0.27")), (59_400, Decimal("0.135")))


def test_what_is_not_in_the_list_is_unknown_with_a_reason_and_never_0() -> None:
    assert priced("llm.tokens.input", "ollama", "llama3") == Unknown("provider_unknown")
    assert priced("llm.tokens.input", "openai", "no-such-model") == Unknown("model_unknown")
    assert priced("llm.tokens.input", "openai", "") == Unknown("model_missing")
    assert priced("llm.tokens.output", "openai", "text-embedding-3-small") == Unknown("no_price")
    assert priced("llm.pages", "openai", "gpt-4o") == Unknown("no_price")


def test_requests_cost_nothing_where_the_list_has_no_price_for_them_and_something_where_it_has() -> None:
    free = priced("llm.requests", "openai", "gpt-4o")
    assert isinstance(free, Price)
    assert (free.price, free.free) == (Decimal(0), True)
    charged = [
        model.id
        for provider in providers
        if provider.id == "perplexity"
        for model in provider.models
        if isinstance(found := priced("llm.requests", "perplexity", model.id), Price) and not found.free
    ]
    assert charged


def test_names_of_opentelemetry_find_the_provider() -> None:
    found = {
        name: catalogue().find(name, model)
        for name, model in {
            "gcp.gemini": "gemini-2.5-pro",
            "gcp.vertex_ai": "gemini-2.5-pro",
            "aws.bedrock": "amazon.nova-lite-v1:0",
            "mistral_ai": "mistral-large-latest",
            "azure.ai.openai": "gpt-4o",
            "x_ai": "grok-4",
            "": "gpt-4o",
        }.items()
    }
    names = {name: it if isinstance(it, str) else it[0].id for name, it in found.items()}
    assert names == {
        "gcp.gemini": "google",
        "gcp.vertex_ai": "google",
        "aws.bedrock": "aws",
        "mistral_ai": "mistral",
        "azure.ai.openai": "azure",
        "x_ai": "x-ai",
        "": "openai",
    }


BUCKETS = (
    ("llm.tokens.input", "", "", 1200),
    ("llm.tokens.cache_read", "", "", 7000),
    ("llm.tokens.cache_write", "", "5m", 310),
    ("llm.tokens.cache_write", "", "1h", 45),
    ("llm.tokens.output", "", "", 512),
    ("llm.tokens.reasoning", "", "", 99),
)


def ours(provider: str, model: str, moment: datetime, scale: int, tier: str) -> Decimal | None:
    """What a request of the buckets costs, of the rates; None where any is unknown."""
    total = sum(count for meter, _, _, count in BUCKETS if meter in costs_catalogue.CONTEXT_METERS) * scale
    amount = Decimal(0)
    for meter, modality, ttl, count in BUCKETS:
        found = catalogue().price(Asked(meter, provider, model, modality, ttl, tier), moment.date())
        if isinstance(found, Unknown):
            return None
        price = found.price
        for start, other in found.tiers:
            price = other if total > start else price
        second = moment.hour * 3600 + moment.minute * 60
        for start, other in found.clock:
            price = other if second >= start else price
        amount += price * count * scale / found.per
    return amount


def theirs(provider: str, model: str, moment: datetime, scale: int, context: dict[str, str] | None) -> Decimal:
    sums: dict[str, int] = {}
    for meter, _, ttl, count in BUCKETS:
        keys = {
            "llm.tokens.input": ("input_tokens",),
            "llm.tokens.cache_read": ("input_tokens", "cache_read_tokens"),
            "llm.tokens.cache_write": ("input_tokens", "cache_write_tokens", f"cache_write_{ttl}_tokens"),
            "llm.tokens.output": ("output_tokens",),
            "llm.tokens.reasoning": ("output_tokens", "output_reasoning_tokens"),
        }[meter]
        for key in keys:
            sums[key] = sums.get(key, 0) + count * scale
    found = genai_prices.calc_price(
        types.Usage(**sums), model, provider_id=provider, genai_request_timestamp=moment, price_context=context
    )
    per_request = found.model_price.requests_kcount or Decimal(0)
    return found.total_price - Decimal(str(per_request)) / 1000


@pytest.mark.parametrize("tier", ["", "batch", "flex", "priority"])
def test_each_model_of_the_list_costs_what_genai_prices_calculates(tier: str) -> None:
    chance = random.Random(5)  # each second model of the list, at a time and of a size of its own
    compared = 0
    context = {"service_tier": tier, **({"processing": "batch"} if tier == "batch" else {})} if tier else None
    for provider in providers:
        for model in provider.models[:: 1 if tier else 2]:
            if tier and not any(
                all((context or {}).get(key) == value for key, value in it.when.items())
                for it in model.price_variants or ()
            ):
                continue
            # Prices of batches and tiers are listed from the middle of October on.
            since = date(2026, 10, 15) if tier else date(2026, 9, 1)
            moment = datetime.combine(since, time(), UTC) + timedelta(minutes=chance.randrange(40 * 1440))
            scale = chance.choice([1, 1, 10, 100])
            found = catalogue().find(provider.id, model.id)
            if isinstance(found, str):
                with pytest.raises(LookupError):
                    theirs(provider.id, model.id, moment, scale, context)
                continue
            mine = ours(provider.id, model.id, moment, scale, tier)
            if mine is None:
                continue  # the library takes a missing price for 0
            assert mine == theirs(provider.id, model.id, moment, scale, context), (provider.id, model.id, moment)
            compared += 1
    # Models with no output price, or a tier that is not listed yet on that day, are unknown.
    assert compared > {"": 950, "batch": 90, "flex": 20, "priority": 20}[tier], compared


def test_names_of_models_find_what_genai_prices_finds() -> None:
    from genai_prices.data_snapshot import get_snapshot

    names = [
        "gpt-4o-2024-08-06",
        "gpt-5.2-20251211",
        "Claude-3-5-Sonnet-20241022",
        "us.anthropic.claude-sonnet-4-5-v1:0",
    ]
    names += ["anthropic.claude-3-haiku-20240307-v1:0", "gemini-2.5-flash-preview", "models/gemini-2.5-pro", "o3-mini"]
    names += ["mistral-small-latest", "command-r-plus", "deepseek-chat", "grok-4-fast", "openai/gpt-4o", "nothing"]
    names += [model.id.upper() for provider in providers[:12] for model in provider.models][::29]
    for name in names:
        for provider in (
            "openai",
            "anthropic",
            "google",
            "aws.bedrock",
            "azure",
            "litellm",
            "openrouter",
            None,
            "none",
        ):
            found = catalogue().find(provider or "", name)
            try:
                at, model = get_snapshot().find_provider_model(name, None, provider, None)
            except LookupError:
                assert isinstance(found, str), (provider, name)
            else:
                assert not isinstance(found, str), (provider, name)
                assert (found[0].id, found[1].id) == (at.id, model.id)
