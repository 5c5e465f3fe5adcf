"""Klines by timeframe: ``DataIngestion`` fetches and stores them, ``DataCuration`` curates them."""

from ingestion.curation import DataCuration
from ingestion.ingestion import DataIngestion

__all__ = ["DataCuration", "DataIngestion"]
