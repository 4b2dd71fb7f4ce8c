"""What makes an ordinary `celery worker` host entities: bootsteps, the drain task, the runner process."""
