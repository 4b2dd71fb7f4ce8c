"""When schedules fire: ticks, recurrences and the plan of what is due. Nothing in here reads a clock or a store."""
