"""Several decisions for one query: generators that yield a Decision and are sent its Outcome. No I/O inside."""
