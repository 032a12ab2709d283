"""What the service and the consumer share: the job, its ledger, and the words for both."""
